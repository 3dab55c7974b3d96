"""Tab completion: ``interpretune --print-completion bash`` prints a script for a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Print the script by which a shell completes a command and its options, with shtab."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, choices=SHELLS, help="print a script for the tab completion of a shell")

    def __call__(self, parser: argparse.ArgumentParser, *given: Any, **_: Any) -> None:  # noqa: D102
        try:
            import shtab
        except ImportError:
            parser.error(
                f"{self.option_strings[0]} needs shtab, which is not installed: pip install "
                '"interpretune-core[completion]"'
            )
        for action in _actions(parser):
            if action.type is Path or action.dest == "arguments":  # the latter are those of `run`: a file, then options
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
        print(shtab.complete(parser, shell=given[1]))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Options and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)

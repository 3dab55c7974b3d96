"""Commands of installed packages: known by name from their metadata, imported when they are called."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from interpretune.errors import AdapterSignatureError
from interpretune.system.offered import COMMANDS, Offer


def add_offered_commands(commands: Any) -> None:
    """Add a parser for each command that packages offer; what stands behind its name is left to the command.

    Args:
        commands: What ``add_subparsers`` of argparse returns.
    """
    for name, offer in COMMANDS.offered().items():
        refusal = offer.refusal()
        if name in commands.choices:
            continue  # `interpretune doctor` says so
        told = f"of {offer.distribution} {offer.version}" if refusal is None else f"cannot be used: {refusal}"
        parser = commands.add_parser(name, help=told.replace("%", "%%"), add_help=False, prefix_chars="\0")
        parser.add_argument("arguments", nargs=argparse.REMAINDER)
        parser.set_defaults(run=partial(_run, offer))


def _run(offer: Offer, options: argparse.Namespace) -> int:
    """Import and call a command with the texts behind its name."""
    status = offer.load()(options.arguments)
    if status is None:
        return 0
    if type(status) is not int:
        raise AdapterSignatureError(
            f"The command {offer} returned a {type(status).__name__}; it must return its exit status, a whole number, "
            "or None for 0."
        )
    return status

"""Arguments and file of ``interpretune run`` as they are written: names are known, types are not looked at yet."""

from __future__ import annotations

import copy
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen
from jsonargparse import get_loader

from interpretune.cli.written_analysis import RunnerOptions
from interpretune.cli.written_names import refuse_unknown
from interpretune.errors import ConfigurationError
from interpretune.session.session import ITSessionConfig

PARTS = ("session", "analyses", "runner")
SESSION_FIELDS = tuple(item.name for item in fields(ITSessionConfig))
RUNNER_FIELDS = tuple(item.name for item in fields(RunnerOptions))
FLAGS = ("dry-run", "json", "print_config", "help")
ANALYSIS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@frozen
class CommandLine:
    """Arguments in their parts.

    Attributes:
        file: The configuration file.
        options: Full names and values as they are written, in order.
        asks: Requests for help or for the configuration.
        dry_run: Whether ``--dry-run`` is there.
        json: Whether ``--json`` is there.
    """

    file: str | None
    options: tuple[tuple[str, str], ...]
    asks: tuple[str, ...]
    dry_run: bool
    json: bool


def split_arguments(arguments: Sequence[str]) -> CommandLine:
    """Take arguments apart; every option but the flags has one value.

    Raises:
        ArgumentError: An option is unknown or has no value, or there are two files.
    """
    file, options, asks, flags = None, [], [], set()
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if argument in ("--dry-run", "--json"):
            flags.add(argument)
        elif argument in ("-h", "--help") or name in ("--print_config", "--print-config"):
            asks.append(argument.replace("print-config", "print_config"))
        elif name.startswith("--") and name.endswith(".help"):
            asks.append(f"--{_full_name(name[2:])}{equals}{value}")
        elif name.startswith("--"):
            if not equals:
                if not waiting:
                    raise ArgumentError(None, f"{name} needs a value.")
                value = waiting.pop(0)
            options.append((_full_name(name[2:]), value))
        elif argument.startswith("-") or file is not None:
            raise ArgumentError(None, f"{argument!r} is one too many: there is one CONFIG.yaml, and options begin --.")
        else:
            file = argument
    return CommandLine(file, tuple(options), tuple(asks), "--dry-run" in flags, "--json" in flags)


def read_file(file: str | None) -> dict[str, Any]:
    """The configuration of a file, with all its parts; an analysis may be a mode alone.

    Raises:
        ConfigurationError: The file cannot be read, or has something else.
    """
    found: Any = {}
    if file is not None:
        try:
            found = get_loader("yaml")(Path(file).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{file} cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{file} is no YAML: {error}") from error
        if not isinstance(found, dict):
            raise ConfigurationError(f"{file} has no mapping; it takes {', '.join(PARTS)}.")
    refuse_unknown(found, PARTS, str(file))
    for part in PARTS:
        if found.get(part) is None:
            found[part] = {}
    if isinstance(found["analyses"], dict):
        found["analyses"] = {
            str(name): {"mode": item} if isinstance(item, str) else item or {}
            for name, item in found["analyses"].items()
        }
    return found


def with_options(written: Mapping[str, Any], options: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The configuration with the command line's options: for names and the first stage, not for types."""
    wanted = copy.deepcopy(dict(written))
    for name, text in options:
        *path, last = name.rstrip("+").split(".")
        here = wanted
        for step in path:
            here = _below(here, step)
        try:
            value = get_loader("yaml")(text)
        except yaml.YAMLError:
            value = text
        holder = here if last in ("class_path", "init_args") else _arguments_in(here)
        holder[last] = [*(holder.get(last) or []), value] if name.endswith("+") else value
    return wanted


def check_shape(wanted: Mapping[str, Any]) -> None:
    """Check parts, names and adapters, which are read before the types of fields are known (``ConfigurationError``)."""
    for part in PARTS:
        if not isinstance(wanted[part], dict):
            raise ConfigurationError(f"{part} is {wanted[part]!r}; it takes a mapping.")
    refuse_unknown(wanted["session"], SESSION_FIELDS, "session")
    for name in wanted["analyses"]:
        if not ANALYSIS_NAME.fullmatch(str(name)):
            raise ConfigurationError(
                f"The analysis {name!r} cannot be a folder's name; use letters, digits, - and _ only."
            )
    names = wanted["session"].get("adapter_ctx")
    if names is not None and not isinstance(names, str) and not _are_words(names):
        raise ConfigurationError(f"session.adapter_ctx is {names!r}; it takes a list of adapters' names.")


def _full_name(name: str) -> str:
    """The name of an option in the configuration."""
    first = name.rstrip("+").partition(".")[0]
    if first in SESSION_FIELDS:
        return f"session.{name}"
    if first in RUNNER_FIELDS:
        return f"runner.{name}"
    try:
        refuse_unknown([first], (*PARTS, *SESSION_FIELDS, *RUNNER_FIELDS, *FLAGS), "The run")
    except ConfigurationError as error:
        raise ArgumentError(None, f"--{name}: {error}") from error
    return name


def _below(here: dict[str, Any], step: str) -> dict[str, Any]:
    holder = here if step == "init_args" else _arguments_in(here)
    if not isinstance(holder.get(step), dict):
        holder[step] = {}
    return holder[step]


def _arguments_in(here: dict[str, Any]) -> dict[str, Any]:
    if "class_path" not in here:
        return here
    return here.setdefault("init_args", {})


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)

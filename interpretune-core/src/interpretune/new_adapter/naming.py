"""The names of a new adapter: its own, and those of its package, distribution and classes."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, distribution

from attrs import frozen

from interpretune.errors import ConfigurationError
from interpretune.plugins.discovery import installed_adapters

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST = 24
"""Longest name, in characters; the lines of the templates have room for it."""


@frozen
class AdapterNames:
    """What follows from the name of an adapter; by convention package and distribution drop its underscores."""

    name: str

    @property
    def joined(self) -> str:
        """``mylens``."""
        return self.name.replace("_", "")

    @property
    def package(self) -> str:
        """``interpretune_mylens``."""
        return f"interpretune_{self.joined}"

    @property
    def distribution(self) -> str:
        """``interpretune-mylens``."""
        return f"interpretune-{self.joined}"

    @property
    def class_name(self) -> str:
        """``MyLens``."""
        return "".join(part.capitalize() for part in self.name.split("_"))


def check_name(name: str) -> AdapterNames:
    """The names of an adapter that does not exist yet; ``ConfigurationError`` where its own is none, or taken."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        offered = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")[:LONGEST].rstrip("_")
        raise ConfigurationError(
            f"{name!r} cannot be the name of an adapter: it must begin with a letter and consist of lower-case letters "
            f"and digits, with single underscores between words, {LONGEST} characters at most."
            + (f" Write {offered!r}." if offered else "")
        )
    names = AdapterNames(name)
    for other in installed_adapters().values():
        if other.name == name:
            raise ConfigurationError(
                f"The name {name!r} is taken: {other.distribution} {other.version} registers it. Choose another name, "
                f"or `pip uninstall {other.distribution}` first."
            )
    if _is_installed(names):
        raise ConfigurationError(
            f"The adapter {name!r} would be published as {names.distribution} and imported as {names.package}, which "
            "is installed. Choose another name, or uninstall that first."
        )
    return names


def _is_installed(names: AdapterNames) -> bool:
    try:
        distribution(names.distribution)
    except PackageNotFoundError:
        return importlib.util.find_spec(names.package) is not None
    return True

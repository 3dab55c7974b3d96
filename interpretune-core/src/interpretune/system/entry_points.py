"""Entry points of installed packages, read so that the broken ones of others stop nobody."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from attrs import frozen

from interpretune.errors import InterpretuneError
from interpretune.system.requirements import UnmetRequirement, told, unmet_requirements


@frozen
class UnreadableRegistration:
    """A distribution whose entry points name a group but cannot be read."""

    distribution: str
    version: str
    reason: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.reason})"


def registered(group: str) -> list[importlib.metadata.EntryPoint]:
    """Every entry point of a group, including names that two distributions register; nothing is imported.

    Distributions whose entry points cannot be read are left out; ``unreadable`` lists them.
    """
    try:
        return list(importlib.metadata.entry_points(group=group))
    except Exception:  # noqa: BLE001 - one unreadable file stops the standard library's reading of all: one by one then
        return [item for distribution in _distributions() for item in _of_distribution(distribution, group)[0]]


def unreadable(group: str) -> list[UnreadableRegistration]:
    """Distributions that seem to register something in a group, and whose entry points cannot be read."""
    return [
        UnreadableRegistration(*_name_and_version(distribution), reason)
        for distribution in _distributions()
        if (reason := _of_distribution(distribution, group)[1])
    ]


def owner_of(entry_point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that registers an entry point."""
    return _name_and_version(entry_point.dist)


def load_registered(entry_point: importlib.metadata.EntryPoint, refusal: Callable[[str], InterpretuneError]) -> Any:
    """Import the object of an entry point, if the versions are installed that its distribution asks for.

    Args:
        entry_point: As the metadata have it.
        refusal: Makes the error to raise from what is wrong: with versions, or what the import raised.
    """
    owner = owner_of(entry_point)[0]
    if unmet := versions_unmet(entry_point.value, owner):
        raise refusal(told(unmet))
    return import_registered(entry_point, owner, refusal)


def import_registered(
    entry_point: importlib.metadata.EntryPoint, owner: str, refusal: Callable[[str], InterpretuneError]
) -> Any:
    """Import the object of an entry point of the distribution ``owner``; see ``load_registered``."""
    try:
        return entry_point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a stranger's module raises, sys.exit too, is reported with its owner
        behind = told(unmet_requirements(owner, indirect=True))  # a library may be too new for another library
        raise refusal(f"{type(error).__name__}: {error}" + (f" ({behind})" if behind else "")) from error


def versions_unmet(target: str, distribution: str) -> list[UnmetRequirement]:
    """What a distribution asks for and is installed in another version; nothing where its module is imported already.

    Args:
        target: ``module:attribute`` of one of its entry points.
        distribution: Its name.
    """
    return [] if target.partition(":")[0] in sys.modules else unmet_requirements(distribution)


def first_line(error: BaseException) -> str:
    """Type and first line of an error."""
    text = str(error.args[0] if error.args else error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'without a word'}"


def _distributions() -> Iterator[importlib.metadata.Distribution]:
    """The distributions on the path; of several with the same name the first, as with imports."""
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", _name_and_version(distribution)[0]).lower()
        if name not in seen:
            seen.add(name)
            yield distribution


def _of_distribution(
    distribution: importlib.metadata.Distribution, group: str
) -> tuple[list[importlib.metadata.EntryPoint], str]:
    """What a distribution registers in a group, and why it cannot be read; one of the two is empty."""
    try:
        return [item for item in distribution.entry_points if item.group == group], ""
    except Exception as error:  # noqa: BLE001 - a stranger's metadata may break its reader in any way; it is reported
        text = _text(distribution)
        return [], f"entry_points.txt: {first_line(error)}" if text is None or group in text else ""


def _text(distribution: importlib.metadata.Distribution) -> str | None:
    """The file of entry points; None where it cannot be read, and so may name any group."""
    try:
        return distribution.read_text("entry_points.txt") or ""
    except (OSError, ValueError):
        return None


def _name_and_version(distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
    if distribution is None:
        return "no distribution", "?"
    try:
        metadata: Any = distribution.metadata or {}  # a damaged installation may have no metadata, or no name in it
    except (OSError, ValueError):
        metadata = {}
    return metadata.get("Name") or "no name", metadata.get("Version") or "?"

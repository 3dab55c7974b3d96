"""Versions that a distribution asks for in its metadata, beside those that are installed.

Only pip compares them, and only when it installs: another package may be upgraded later, or installed without its
dependencies.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from attrs import frozen
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@frozen
class UnmetRequirement:
    """A distribution that is installed in a version that another one does not work with.

    Attributes:
        asking: The distribution that asks, with its version.
        name: The distribution that it asks for.
        wanted: The versions that it works with: ``>=3.9,<5``.
        installed: The version that is installed.
    """

    asking: str
    name: str
    wanted: str
    installed: str

    def __str__(self) -> str:
        return f"{self.asking} needs {self.name}{self.wanted}, and {self.name} {self.installed} is installed"

    @property
    def command(self) -> str:
        """The command that installs a version that works."""
        return f'pip install "{self.name}{self.wanted}"'


def unmet_requirements(distribution: str, *, indirect: bool = False) -> list[UnmetRequirement]:
    """What a distribution asks for and is installed in another version.

    Distributions that are not installed at all are left to the import, which names the module: a module may come from
    elsewhere. So is what cannot be compared, such as addresses in place of versions.

    Args:
        distribution: Its name.
        indirect: Also what its requirements ask for, and so on.
    """
    found, seen, waiting = [], set(), [distribution]
    while waiting:
        name = canonicalize_name(waiting.pop(0))
        if name in seen or (version := _installed_version(name)) is None:
            continue
        seen.add(name)
        for requirement in _requirements_of(name):
            installed = _installed_version(requirement.name)
            if installed is None:
                continue
            if not requirement.specifier.contains(installed, prereleases=True):
                wanted = ",".join(sorted(map(str, requirement.specifier), reverse=True))  # the lower bound first
                found.append(UnmetRequirement(f"{name} {version}", requirement.name, wanted, str(installed)))
            if indirect:
                waiting.append(requirement.name)
    return found


def told(unmet: list[UnmetRequirement]) -> str:
    """What is wrong and the command that repairs it, as text for an error; empty where nothing is unmet."""
    commands = list(dict.fromkeys(f"`{item.command}`" for item in unmet))
    return f"{'; '.join(map(str, unmet))}. Run {' and '.join(commands)}" if unmet else ""


def _requirements_of(distribution: str) -> Iterator[Requirement]:
    """Its requirements, without those of extras."""
    for line in importlib.metadata.requires(distribution) or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # of another packaging standard: nothing can be compared
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _installed_version(distribution: str) -> Version | None:
    """None: it is not installed, or its version cannot be read or compared."""
    try:
        text: str | None = importlib.metadata.version(distribution)  # None where damaged metadata have no version
        return Version(text or "")
    except (LookupError, OSError, ValueError, importlib.metadata.PackageNotFoundError):
        return None

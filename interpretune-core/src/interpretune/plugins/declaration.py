"""What an adapter declares about itself: name, level, requirements, conflicts, contract version."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from attrs import Attribute, field, frozen
from attrs.validators import matches_re

from interpretune.errors import ConfigurationError

CONTRACT_VERSION = "1.0"
"""Version of ``hookspecs.py``. An adapter and core are compatible if the major numbers are equal."""


class Level(StrEnum):
    """Where an adapter stands in the stack; lower levels come first."""

    framework = "framework"
    model = "model"
    latents = "latents"
    extension = "extension"

    @property
    def rank(self) -> int:
        """Position in the stack, 0 at the bottom."""
        return list(Level).index(self)


def _level(value: str | Level) -> Level:
    try:
        return Level(value)
    except ValueError:
        raise ConfigurationError(
            f"Unknown adapter level {value!r}. The levels are {', '.join(level.value for level in Level)}."
        ) from None


def _names(value: Iterable[str]) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)  # ("core") is easily written for ("core",)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ConfigurationError(f"Adapters are named by strings; found {wrong[0]!r}.")
    return names


@frozen(kw_only=True)
class AdapterDeclaration:
    """The frozen declaration that every adapter object has as its attribute ``declaration``.

    Write it as a call with literal arguments: ``interpretune adapters`` then reads it from the source without
    importing the adapter.

    Attributes:
        name: Short lower-case name, equal to the entry-point name.
        level: ``framework`` < ``model`` < ``latents`` < ``extension``.
        requires: Names of adapters that must stand below this one; core adds them to the stack.
        conflicts: Names of adapters that cannot share a stack with this one.
        before: Names of adapters of the same level that stand above this one. Only what is stacked is ordered: names of
            others are ignored.
        after: The same of those that stand below it.
        default_model: Name of the model adapter that core adds if it is installed and the stack has no other adapter of
            level ``model``. Any model adapter with the required hook points works.
        contract: Version of the contract that the adapter was written for, ``major.minor``. Write it as a literal, so
            that it stays the same when core moves to a later one.
    """

    name: str = field(validator=matches_re(r"[a-z][a-z0-9_]*"))
    level: Level = field(converter=_level)
    contract: str = field(validator=matches_re(r"[0-9]{1,4}\.[0-9]{1,4}"))
    requires: tuple[str, ...] = field(default=(), converter=_names)
    conflicts: tuple[str, ...] = field(default=(), converter=_names)
    before: tuple[str, ...] = field(default=(), converter=_names)
    after: tuple[str, ...] = field(default=(), converter=_names)
    default_model: str | None = None

    @before.validator
    @after.validator
    def _names_others(self, attribute: Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
        if self.name in value:
            raise ConfigurationError(f"Adapter {self.name!r} declares {attribute.name}={self.name!r}, which is itself.")

    @property
    def speaks_current_contract(self) -> bool:
        """Whether this core supports the adapter: equal major version, minor version not newer than core's."""
        (major, minor), (core_major, core_minor) = parts_of(self.contract), parts_of(CONTRACT_VERSION)
        return major == core_major and minor <= core_minor

    def knows(self, version: str) -> bool:
        """Whether additions of a contract version belong to the contract that the adapter was written for."""
        return parts_of(version) <= parts_of(self.contract)


def parts_of(version: str) -> tuple[int, int]:
    """Major and minor number of a version of the contract."""
    major, minor = version.split(".")
    return int(major), int(minor)

"""What an adapter says of itself: name, level, requirements, conflicts, contract version."""

from __future__ import annotations

from enum import Enum
from typing import Any

from attrs import field, frozen
from attrs.validators import matches_re

from interpretune.errors import ConfigurationError

CONTRACT_VERSION = "1.0"
"""Version of ``hookspecs.py``. Same major number: an adapter and core understand each other."""


class Level(str, Enum):
    """Where an adapter stands in the stack; lower levels come first."""

    framework = "framework"
    model = "model"
    latents = "latents"
    extension = "extension"

    @property
    def rank(self) -> int:
        """Position in the stack, 0 at the bottom."""
        return list(Level).index(self)

    def __str__(self) -> str:
        return self.value


def _level(value: str | Level) -> Level:
    try:
        return Level(value)
    except ValueError:
        raise ConfigurationError(
            f"Unknown adapter level {value!r}. The levels are {', '.join(level.value for level in Level)}."
        ) from None


@frozen(kw_only=True)
class AdapterDeclaration:
    """The frozen declaration that every adapter object carries as its attribute ``declaration``.

    Write it as a call with literal arguments: ``interpretune adapters`` then reads it from the source without
    importing the adapter.

    Attributes:
        name: Short lower-case name, equal to the entry-point name.
        level: ``framework`` < ``model`` < ``latents`` < ``extension``.
        requires: Names of adapters that must stand below this one; core adds them to the stack.
        conflicts: Names of adapters that cannot share a stack with this one.
        default_model: Name of the model adapter that core adds where the stack has no other adapter of level ``model``
            and this one is installed. Any model adapter will do that has the hook points which are asked for.
        contract: Version of the contract that the adapter was written for, ``major.minor``.
    """

    name: str = field(validator=matches_re(r"[a-z][a-z0-9_]*"))
    level: Level = field(converter=_level)
    requires: tuple[str, ...] = field(default=(), converter=tuple[Any, ...])
    conflicts: tuple[str, ...] = field(default=(), converter=tuple[Any, ...])
    default_model: str | None = None
    contract: str = field(default=CONTRACT_VERSION, validator=matches_re(r"\d+\.\d+"))

    @property
    def speaks_current_contract(self) -> bool:
        """Whether this core understands the adapter: equal major version, minor not newer than core's."""
        major, minor = (int(part) for part in self.contract.split("."))
        core_major, core_minor = (int(part) for part in CONTRACT_VERSION.split("."))
        return major == core_major and minor <= core_minor

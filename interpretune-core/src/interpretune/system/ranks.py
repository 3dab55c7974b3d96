"""Which of several processes this is, as their starters say in ``RANK`` and ``WORLD_SIZE``."""

from __future__ import annotations

import os
import warnings

from interpretune.errors import ConfigurationError


def rank_and_processes() -> tuple[int, int]:
    """Number of this process, from 0, and of all that share a run, by the environment; ``(0, 1)`` where it is silent.

    Raises:
        ConfigurationError: The two do not fit together.
    """
    given = {"RANK": _given("RANK", "0"), "WORLD_SIZE": _given("WORLD_SIZE", "1")}
    told = ", ".join(f"{name}={os.environ[name]}" if name in os.environ else f"no {name}" for name in given)
    if not all(text.isdecimal() for text in given.values()) or not int(given["RANK"]) < int(given["WORLD_SIZE"]):
        raise ConfigurationError(
            f"The environment has {told}. Processes that share a run are numbered by RANK, from 0, and WORLD_SIZE is "
            "how many there are: torchrun sets both; in an array job set them from its own variables, or neither for a "
            "single process."
        )
    return int(given["RANK"]), int(given["WORLD_SIZE"])


def is_first_process() -> bool:
    """Whether ``RANK`` says that this is the first process, or says nothing."""
    return _given("RANK", "0") == "0"


def _given(name: str, default: str) -> str:
    """A variable of the environment; empty means unset."""
    return os.environ.get(name) or default


def rank_zero_warn(message: str, category: type[Warning] = UserWarning, stacklevel: int = 2) -> None:
    """Warn, unless ``RANK`` says that this is not the first process."""
    if is_first_process():
        warnings.warn(message, category, stacklevel=stacklevel + 1)

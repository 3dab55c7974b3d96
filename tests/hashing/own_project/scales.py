"""A helper in another module of the user's, and the setting that it reads."""

from __future__ import annotations

from torch import Tensor

FACTOR = 1.0


def scaled(latents: Tensor) -> Tensor:
    """Latents times the setting of this module."""
    return latents * FACTOR


def imported_late(latents: Tensor) -> Tensor:
    """What a function imports when it runs."""
    from tests.hashing.own_project import late

    return latents * late.LATE

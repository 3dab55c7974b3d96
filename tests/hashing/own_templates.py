"""Another module of the user's."""

from __future__ import annotations

FRAME = "the cat {}"


def framed(text: str) -> str:
    """Use the frame of this module."""
    return FRAME.format(text)

"""Who called this package: the frame to which a warning belongs, however deep within the package it is raised."""

from __future__ import annotations

import inspect


def level_of_caller() -> int:
    """``stacklevel`` for ``warnings.warn`` in the function that asks: that of the nearest frame of others."""
    own, level, frame = __name__.partition(".")[0], 0, inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == own:
        frame, level = frame.f_back, level + 1
    return level

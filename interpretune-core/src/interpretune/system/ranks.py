"""Warnings that only the first process of a distributed run gives."""

from __future__ import annotations

import os
import warnings


def rank_zero_warn(message: str, category: type[Warning] = UserWarning, stacklevel: int = 2) -> None:
    """Warn, unless ``RANK`` says that this is not the first process."""
    if int(os.environ.get("RANK", "0")) == 0:
        warnings.warn(message, category, stacklevel=stacklevel + 1)

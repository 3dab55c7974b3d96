"""Imports interp-engine, of a version that is known here."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from interpretune import ModelLoadError

REQUIREMENT = "interp-engine>=1.14,<1.15"


def import_interp_engine() -> Any:
    """Import interp-engine, which takes seconds, and return it.

    Raises:
        ModelLoadError: interp-engine is missing, or of a version that is not supported.
    """
    try:
        found = version("interp-engine")
    except PackageNotFoundError:
        found = None
    if found is None or found.split(".")[:2] != ["1", "14"]:
        raise ModelLoadError(
            f"The adapter interp_engine needs {REQUIREMENT}, and {f'{found} is' if found else 'interp-engine is not'} "
            f'installed: `pip install "{REQUIREMENT}"`.'
        )
    return importlib.import_module("interp_engine")

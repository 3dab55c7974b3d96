"""Imports nnsight, of a version that is known here, without what it changes for the whole process."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from interpretune import ModelLoadError

REQUIREMENT = "nnsight>=0.8,<0.9"


def import_nnsight() -> None:
    """Import nnsight, unless that was done before.

    nnsight replaces ``Tensor.backward`` and gives every object of the process a method ``save``. Nothing here needs
    either, and an object that seems to have a ``save`` of its own misleads others: both are taken back. Who has
    imported nnsight before keeps them.

    Raises:
        ModelLoadError: nnsight is missing, or of a version that is not supported.
    """
    try:
        found = version("nnsight")
    except PackageNotFoundError:
        found = None
    if found is None or found.split(".")[:2] != ["0", "8"]:
        raise ModelLoadError(
            f"The adapter nnsight needs {REQUIREMENT}, and {f'{found} is' if found else 'nnsight is not'} installed: "
            f'`pip install "{REQUIREMENT}"`.'
        )
    if "nnsight" in sys.modules:
        return
    backward = torch.Tensor.backward
    importlib.import_module("nnsight")
    torch.Tensor.backward = backward  # type: ignore[method-assign]
    if "save" in vars(object):
        importlib.import_module("nnsight._c").unmount("save")

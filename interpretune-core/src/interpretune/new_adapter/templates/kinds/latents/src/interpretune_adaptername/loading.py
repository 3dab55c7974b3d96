"""Reads dictionaries from folders, and widths from models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from interpretune import ITModule, LatentModelError
from interpretune.activations import probe_inputs
from interpretune.analysis import layer_of
from safetensors import SafetensorError
from safetensors.torch import load_file

from interpretune_adaptername.dictionary import ABOUT, WEIGHTS, Dictionary


def load_dictionary(path: str | Path) -> Dictionary:
    """Read what ``Dictionary.save_to`` wrote.

    Args:
        path: The folder.

    Raises:
        LatentModelError: The folder is none of a dictionary, or is damaged.
    """
    folder = Path(path).expanduser()
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        dictionary = Dictionary(about["hook_point"], about["d_in"], about["d_sae"])
        dictionary.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise LatentModelError(
            f"{folder} cannot be read as a dictionary of adapter_name: {type(error).__name__}: {error}. "
            f"Give a folder with {ABOUT} and {WEIGHTS}, as Dictionary.save_to writes them."
        ) from error
    return dictionary


def find_saved(folder: Path, layers: Sequence[int] = (), ids: Sequence[str] = ()) -> Sequence[Path]:
    """A folder, if a dictionary is saved there, or the folders in it where one is: of some layers, of some names."""
    files = [folder / ABOUT] if (folder / ABOUT).is_file() else sorted(folder.glob(f"*/{ABOUT}"))
    named = [file for file in files if not ids or file.parent.name in ids]
    return [file.parent for file in named if not layers or _layer(file) in layers]


def _layer(about: Path) -> int | None:
    return layer_of(json.loads(about.read_text(encoding="utf-8"))["hook_point"])


def width_at(module: ITModule, hook_point: str) -> int:
    """Numbers at a hook point, for each token: found by a forward of two tokens.

    Raises:
        HookPointError: The model has no such hook point; the nearest names are given.
    """
    seen = module.backend.capture(probe_inputs(module.device), [hook_point])
    return seen[hook_point].flatten(2).shape[-1]

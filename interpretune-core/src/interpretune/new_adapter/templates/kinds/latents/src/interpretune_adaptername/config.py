"""What users write to get dictionaries: ``ITConfig(adapter_name_cfgs=[SavedDictionary(path=...)])``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(kw_only=True)
class SavedDictionary:
    """A dictionary in a folder.

    Attributes:
        path: A folder that ``Dictionary.save_to`` wrote.
    """

    path: str | Path


@dataclass(kw_only=True)
class NewDictionary:
    """A random dictionary, to be trained in the session: ``ITConfig(train_latent_models=True)``.

    Attributes:
        hook_point: Where it reads and writes, ``layers.1.resid_post`` for example; the width is measured there.
        d_sae: Number of latents.
        seed: Seed of its weights.
    """

    hook_point: str
    d_sae: int
    seed: int = 0


@dataclass(kw_only=True)
class DictionariesConfig:
    """Fields that the adapter adds to ``ITConfig``.

    Attributes:
        adapter_name_cfgs: The dictionaries of the session.
    """

    adapter_name_cfgs: Sequence[SavedDictionary | NewDictionary] = ()

"""What the trainer has averaged over an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def epoch_means(trainer: Trainer) -> dict[str, Tensor]:
    """Values that steps and hooks of the running loop have logged with ``on_epoch``, reduced over the epoch, by name.

    With several validation loaders a name ends in ``/dataloader_idx_0`` and so on, as in ``trainer.callback_metrics``.

    Args:
        trainer: At the end of an epoch. The look before training has no means: the trainer drops them.
    """
    results = trainer._results
    if results is None or trainer.sanity_checking:
        return {}
    found = {}
    for item in results.values():
        about = item.meta
        if about.on_epoch and not item.has_reset:
            numbered = about.add_dataloader_idx and about.dataloader_idx is not None
            name = f"{about.name}/dataloader_idx_{about.dataloader_idx}" if numbered else about.name
            found[name] = trainer.callback_metrics[name]
    return found

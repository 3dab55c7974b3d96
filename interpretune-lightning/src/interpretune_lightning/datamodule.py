"""The composed data module as a ``LightningDataModule``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule

from interpretune import ITDataModule, ITModule, it_init
from interpretune_lightning.hyperparameters import Hyperparameters
from interpretune_lightning.sharing import share_loaders
from interpretune_lightning.tuning import BatchSize


class ITLightningDataModule(Hyperparameters, BatchSize, ITDataModule, LightningDataModule):
    """Stands behind the user's class; ``ITDataModule`` has what Lightning leaves to the user."""


if TYPE_CHECKING:

    class _UserDataModule(ITLightningDataModule):
        """What stands behind an entry is known when a session composes its class."""
else:
    _UserDataModule = object


class LightningDataModuleEntry(_UserDataModule):
    """Stands before the user's class: the trainer's calls enter here and go on to the user's methods."""

    def prepare_data(self, *args: Any) -> None:
        """Prepare the data set once, where the trainer asks for it; the cache knows whether that was done."""
        if args:
            super().prepare_data(*args)
        else:
            module = self._session_module
            module.hook.it_prepare_data(datamodule=self, module=module)

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Bring the session to life where the trainer is the first to ask for it."""
        if "stage" not in kwargs:
            super().setup(*args, **kwargs)
        elif not self._session_module.initialised:
            it_init(module=self._session_module, datamodule=self)

    def val_dataloader(self) -> Any:
        """The user's loader; of several processes that run a loop, each reads whole batches of it."""
        return self._shared(super().val_dataloader())

    def test_dataloader(self) -> Any:
        """The user's loader; of several processes that run a loop, each reads whole batches of it."""
        return self._shared(super().test_dataloader())

    def predict_dataloader(self) -> Any:
        """The user's loader; of several processes that run a loop, each reads whole batches of it."""
        return self._shared(super().predict_dataloader(), keeps_last=True)

    def _shared(self, loaders: Any, *, keeps_last: bool = False) -> Any:
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1 or trainer.state.stage is None:
            return loaders  # outside of loops nobody else shares them, and runs into stores do so themselves
        return share_loaders(loaders, trainer.world_size, trainer.global_rank, keeps_last=keeps_last)

    @property
    def _session_module(self) -> ITModule:
        assert self.module is not None  # set by the session that composed this class
        return self.module

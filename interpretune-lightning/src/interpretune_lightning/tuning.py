"""The attributes in which Lightning's ``Tuner`` looks for a learning rate and a batch size, and sets them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from interpretune import ITDataModule, ITModule

LR = "lr"


class LearningRate(ITModule):
    """Has the learning rate of ``optimizer_init`` as its attribute ``lr``."""

    @property
    def lr(self) -> Any:
        """The learning rate of ``ITConfig.optimizer_init``; or what was set, where there is none."""
        if LR in vars(self):
            return vars(self)[LR]
        arguments = (self._optimizer_init or {}).get("init_args") or {}
        if LR not in arguments:
            raise AttributeError(f"{type(self).__name__} has no learning rate: optimizer_init names none.", name=LR)
        return arguments[LR]

    @lr.setter
    def lr(self, value: Any) -> None:
        init = self._optimizer_init
        if init is None:  # of a class that makes its optimizers itself
            vars(self)[LR] = value
            return
        self.it_cfg.optimizer_init = {**init, "init_args": {**(init.get("init_args") or {}), LR: value}}

    @property
    def _optimizer_init(self) -> Any:
        cfg = vars(self).get("it_cfg")
        return None if cfg is None else cfg.optimizer_init


class BatchSize(ITDataModule):
    """Has the batch size of the running loop as its attribute ``batch_size``."""

    @property
    def batch_size(self) -> int:
        """Rows in a batch: of training, or of the other loops while one of them runs."""
        own: int | None = vars(self).get("batch_size")
        size: int = getattr(self.itdm_cfg, self._name) if own is None else own
        return size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        if "itdm_cfg" in vars(self):
            setattr(self.itdm_cfg, self._name, value)
        else:  # of a class that has its own
            vars(self)["batch_size"] = value

    @property
    def _name(self) -> str:
        trainer: Any = getattr(self, "trainer", None)
        fits = trainer is None or trainer.state.fn in (None, TrainerFn.FITTING)
        return "train_batch_size" if fits else "eval_batch_size"

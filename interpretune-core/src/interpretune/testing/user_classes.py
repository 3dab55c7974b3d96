"""The classes of an imagined user: they note what is called, and fail where they are told to."""

from __future__ import annotations

from typing import Any, ClassVar

from interpretune.session.datamodule import ITDataModule
from interpretune.training.classification import ClassificationModule


class PlannedError(Exception):
    """An error of the user's own code, raised on purpose."""


class _Noting:
    """Notes calls, and fails in one of them."""

    fails_in: ClassVar[str] = ""
    """The call that raises ``PlannedError``; empty: none."""
    passing_state = frozenset({"calls", "raised", "last_prediction"})

    def note(self, call: str) -> None:
        """Note a call, and fail if it is the one."""
        calls_of(self).append(call)
        if call == self.fails_in:
            vars(self)["raised"] = PlannedError(call)
            raise vars(self)["raised"]


class UserModule(_Noting, ClassificationModule):
    """A module as a user writes it."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Set up, and note it."""
        self.note("setup")
        super().setup(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        """What the configuration says."""
        self.note("configure_optimizers")
        return super().configure_optimizers()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """One step of training."""
        self.note("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """One step of validation."""
        self.note("validation_step")
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """One step of a test; it returns what it logs."""
        self.note("test_step")
        return super().test_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Predictions."""
        self.note("predict_step")
        self.last_prediction = super().predict_step(batch, batch_idx)
        return self.last_prediction


class UserDataModule(_Noting, ITDataModule):
    """A data module as a user writes it."""

    def prepare_data(self, *args: Any, **kwargs: Any) -> None:
        """Prepare, and note it."""
        self.note("prepare_data")
        super().prepare_data(*args, **kwargs)

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Set up, and note it."""
        self.note("setup")
        super().setup(*args, **kwargs)


def calls_of(user: object) -> list[str]:
    """What was called so far; the list itself."""
    return vars(user).setdefault("calls", [])


def error_raised_by(user: object) -> PlannedError | None:
    """The error that it raised last; None: it raised none."""
    return vars(user).get("raised")


def failing(kind: type, call: str) -> type:
    """A subclass of one of the classes above that fails in one call."""
    return type(f"{kind.__name__}FailingIn{call.title().replace('_', '')}", (kind,), {"fails_in": call})

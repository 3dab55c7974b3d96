"""Dropout under a bridge: what it runs but does not hold must switch, what it holds but does not run must run."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from torch import nn

from interpretune_tlens.parameter_names import components

AFTER_ATTENTION = "resid_dropout"
"""The attention of GPT-2 and of its relatives ends with a dropout of this name."""


class ModeOf(nn.Module):
    """Stands among a bridge's modules for one of the wrapped model's; its mode is that module's mode."""

    stands_for: nn.Module

    def __init__(self, stands_for: nn.Module) -> None:
        vars(self)["stands_for"] = stands_for  # no submodule: its parameters have names in the bridge already
        mode = stands_for.training
        super().__init__()  # puts itself into train mode
        self.training = mode

    @property
    def training(self) -> bool:  # torch has a plain attribute
        """Whether the module is in train mode."""
        return self.stands_for.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.stands_for.training = mode


def show_modes(bridge: Any) -> None:
    """Let whoever saves and restores the mode of each of ``bridge.modules()`` reach all of the wrapped model.

    The bridge runs the wrapped model's dropout of the embedding, for one, and switches it with ``train`` and ``eval``,
    but holds only the modules that it has wrapped. Evaluation loops put modes back module by module.
    """
    seen = set(bridge.modules())
    bridge.modes = nn.ModuleList(ModeOf(item) for item in bridge.original_model.modules() if item not in seen)


def run_dropout_after_attention(bridge: Any) -> None:
    """Apply the dropout after attention, which the bridge's own computation of attention leaves out.

    Without it, training would not be that of the Hugging Face model.
    """
    for _, component in components(bridge):
        dropout = getattr(getattr(component, "original_component", None), AFTER_ATTENTION, None)
        if isinstance(dropout, nn.Dropout):
            missed = _Missed(dropout)
            component.register_forward_pre_hook(missed.begin)
            component.register_forward_hook(missed.end)
            dropout.register_forward_hook(missed.note)


_has_run: ContextVar[bool] = ContextVar("interpretune_tlens_dropout_has_run", default=False)
"""Whether the dropout of the attention layer that the caller runs has run; several threads may run one layer."""


class _Missed:
    """Runs a dropout at the end of an attention layer, unless it has run meanwhile."""

    def __init__(self, dropout: nn.Dropout) -> None:
        self.dropout = dropout

    def begin(self, *_: Any) -> None:
        _has_run.set(False)

    def note(self, *_: Any) -> None:
        _has_run.set(True)

    def end(self, attention: nn.Module, arguments: Any, output: Any) -> Any:
        ran = _has_run.get()
        _has_run.set(False)  # as it is outside of forwards
        if ran or not self.dropout.training:
            return output
        return (self.dropout(output[0]), *output[1:]) if isinstance(output, tuple) else self.dropout(output)

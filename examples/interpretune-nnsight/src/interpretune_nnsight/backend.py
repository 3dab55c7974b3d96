"""The analysis backend of nnsight: its workers edit activations while the model runs."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from attrs import frozen
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpretune import ModelLoadError
from interpretune.activations import (
    CARRIED,
    OUT,
    edited_inputs,
    edited_output,
    in_place,
    replaced_methods,
    standing_method,
)
from interpretune.analysis import Edit, HuggingFaceBackend
from interpretune.system import Changed, OwnContext, uncompiled
from interpretune_nnsight.library import import_nnsight

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORK = compile("work()", __name__, "exec")
"""What a worker of nnsight runs is a block of code."""


class NNsightBackend(HuggingFaceBackend):
    """Runs a causal model of Hugging Face with edits made by nnsight.

    Hook points, the forward and the replay are those of the model's class. Only how activations are reached differs:
    while edits are in force, each forward is a run of nnsight's, with one worker for each edit.
    """

    passing_state = frozenset({"_edits", "_runs"})

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        super().__init__(model, tokenizer)
        import_nnsight()

    @contextlib.contextmanager
    def hooked(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Let nnsight make the edits, after those of the blocks around this one; the model is left as it was found."""
        mine: list[_Edited] = []

        def end() -> None:
            _in_force.set(tuple(item for item in _in_force.get() if item not in mine))

        try:
            try:
                with self.patterns_edited(edits) as others:  # which have no module that nnsight could stop at
                    mine += [_Edited(self, *self.module_and_side(name), edit) for name, edit in others.items()]
                    _in_force.set((*_in_force.get(), *mine))
                    with self._wrapped() if others else contextlib.nullcontext():
                        yield
            finally:
                end()
        finally:
            end()  # an interrupt may have come in the first

    @contextlib.contextmanager
    def _wrapped(self) -> Iterator[None]:
        """Wrap the modules that are edited, and make a run of nnsight's of each forward of this thread and context."""
        nnsight: Any = importlib.import_module("nnsight")
        edits = [item for item in _in_force.get() if item.backend is self]
        edited = {item.path: self.modules[item.path] for item in edits}
        entries = {self.model, getattr(self.model, "get_base_model", lambda: self.model)()}
        touched = set().union(*(module.modules() for module in edited.values()))
        put_in = ("forward", nnsight.intervention.source.STATE)

        def read(module: nn.Module) -> dict[str, Any]:
            return {key: vars(module)[key] for key in put_in if key in vars(module)}

        def write(module: nn.Module, before: Mapping[str, Any]) -> None:
            for key in put_in:
                vars(module).pop(key, None)
            vars(module).update(before)

        changed = Changed("nnsight", touched, read, write)
        with OwnContext() as here:
            try:
                try:
                    changed.begin()
                    interleaver, envoys = own_interleaver(here), {}
                    for path, module in edited.items():
                        if path not in envoys:
                            envoys.update(nnsight.Envoy(module, path, interleaver).named_modules())
                    runs = [
                        (entry, "forward", self._run_of(standing_method(entry, "forward"), edits, interleaver, envoys))
                        for entry in entries
                    ]
                    with replaced_methods(runs):
                        yield
                finally:
                    changed.end()
            finally:
                changed.end()  # an interrupt may have come in the first

    def _run_of(self, forward: Any, edits: Sequence[_Edited], interleaver: Any, envoys: Mapping[str, Any]) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self in _running.get():  # what wraps the model, or a block within this one, has begun the run
                return forward(*args, **kwargs)
            before = _running.get()
            try:
                try:
                    _running.set((*before, self))
                    interleaver.mediators = [_worker(envoys[item.path], item.side, item.edit) for item in edits]
                    with interleaver:
                        return forward(*args, **kwargs)
                finally:
                    _running.set(before)
                    interleaver.cancel()
            finally:
                _running.set(before)  # an interrupt may have come in the first

        return run


def backend_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> NNsightBackend:
    """The backend of a model that nnsight wraps; its weights are loaded, if that was not done.

    Args:
        model: Such as ``nnsight.LanguageModel``.
        tokenizer: Its tokenizer.

    Raises:
        ModelLoadError: What it wraps is no model of transformers.
    """
    if hasattr(model, "dispatch"):
        model.dispatch()
    # nnsight names it so in its documentation, and has no other name for it
    wrapped = uncompiled(vars(model)["_module"])
    if not isinstance(wrapped, PreTrainedModel):
        raise ModelLoadError(
            f"The {type(model).__name__} wraps a {type(wrapped).__name__}; the adapter nnsight runs models of "
            "transformers. Wrap one, such as nnsight.LanguageModel does."
        )
    return NNsightBackend(wrapped, tokenizer)


@frozen(eq=False)
class _Edited:
    """One edit that is in force."""

    backend: NNsightBackend
    path: str
    side: str
    edit: Edit


_in_force: ContextVar[tuple[_Edited, ...]] = ContextVar("interpretune_nnsight_in_force", default=())
_running: ContextVar[tuple[NNsightBackend, ...]] = ContextVar("interpretune_nnsight_running", default=())


def own_interleaver(here: OwnContext) -> Any:
    """An interleaver of nnsight's to which modules hand something over in one thread and context only."""
    nnsight: Any = importlib.import_module("nnsight")

    class OwnInterleaver(nnsight.intervention.interleaver.Interleaver):  # type: ignore[misc]
        """Modules ask an interleaver whether it is busy before they hand anything over."""

        @property
        def busy(self) -> bool:
            return self._busy and here.is_here()

        @busy.setter
        def busy(self, busy: bool) -> None:
            self._busy = busy

    return OwnInterleaver()


def _worker(envoy: Any, side: str, edit: Edit) -> Any:
    """A worker that makes an edit each time that the model comes by its place."""
    nnsight: Any = importlib.import_module("nnsight")
    change, context = in_place(edit) if side == CARRIED else edit, contextvars.copy_context()

    def made(activations: Tensor) -> Tensor:
        return context.run(change, activations)  # workers begin with context variables of their own

    def work() -> None:
        for _ in nnsight.intervention.iterator.Iterations()[:]:
            if side == OUT:
                envoy.output = edited_output(envoy.output, made)
            else:
                args, kwargs = envoy.inputs
                envoy.inputs = edited_inputs(args, kwargs, made)

    return nnsight.intervention.interleaver.Mediator(WORK, {}, {"work": work})

"""The analysis backend of nnsight: its workers edit activations while the model runs."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interpretune.analysis import Edit, HuggingFaceBackend
from interpretune.analysis.module_edits import CARRIED, OUT, edited_inputs, edited_output, in_place
from interpretune_nnsight.library import import_nnsight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        self._edits: list[tuple[str, str, Edit]] = []
        self._runs = False

    @contextlib.contextmanager
    def hooked(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Let nnsight make the edits, after those of the blocks around this one; the model is left as it was found."""
        outer = self._edits
        self._edits = [*outer, *((*self.place_of(name), edit) for name, edit in edits.items())]
        try:
            with self._wrapped() if edits else contextlib.nullcontext():
                yield
        finally:
            self._edits = outer

    @contextlib.contextmanager
    def _wrapped(self) -> Iterator[None]:
        """Wrap the modules that are edited, and make a run of nnsight's of each forward."""
        nnsight: Any = importlib.import_module("nnsight")
        put_in = ("forward", nnsight.intervention.source.STATE)
        edited = {path: self.modules[path] for path, _, _ in self._edits}
        entries = {self.model, getattr(self.model, "get_base_model", lambda: self.model)()}
        touched = entries.union(*(module.modules() for module in edited.values()))
        found = [(vars(item), {key: vars(item)[key] for key in put_in if key in vars(item)}) for item in touched]
        interleaver, envoys = nnsight.intervention.interleaver.Interleaver(), {}
        try:
            for path, module in edited.items():
                if path not in envoys:
                    envoys.update(nnsight.Envoy(module, path, interleaver).named_modules())
            for entry in entries:
                vars(entry)["forward"] = self._run_of(entry.forward, interleaver, envoys)
            yield
        finally:
            for attributes, before in found:
                for key in put_in:
                    attributes.pop(key, None)
                attributes.update(before)

    def _run_of(self, forward: Any, interleaver: Any, envoys: Mapping[str, Any]) -> Any:
        edits = self._edits

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._runs:  # what wraps the model, or a block within this one, has begun the run
                return forward(*args, **kwargs)
            interleaver.mediators = [_worker(envoys[path], side, edit) for path, side, edit in edits]
            self._runs = True
            try:
                with interleaver:
                    return forward(*args, **kwargs)
            finally:
                self._runs = False
                interleaver.cancel()

        return run


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

"""Which slots of its sequences a call of the model holds, while a model generates.

A slot counts from the first of the padded prompt. What a call finds in its cache comes before what it is given, so that
the length of the cache says where its first slot lies: for one token after the other, a prompt in pieces, or whole
sequences without a cache. The slots of the prompt are its width; all later ones are generated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn

from interpretune.activations.inputs import ModelInputs
from interpretune.errors import AnalysisError

CachedSlots = Callable[[Sequence[Any], Mapping[str, Any]], "int | object"]
"""From the arguments of a call: how many slots its cache holds, or the cache itself where it does not tell."""


@define(eq=False)
class _Call:
    """A call of the model that is under way.

    Attributes:
        module: What was called.
        cached: What ``CachedSlots`` found.
        first: Its first slot, once somebody asked.
    """

    module: nn.Module
    cached: int | object
    first: int | None = None


_under_way: ContextVar[_Call | None] = ContextVar("interpretune_call", default=None)


@define(eq=False)
class SequenceSlots:
    """Where the rows and slots that hooks of a batch see lie in the prompts and in what follows them.

    Attributes:
        inputs: The prompts.
        watched: Whether the calls of the model are watched (``watch``); otherwise there is one call, with the prompts.
    """

    inputs: ModelInputs
    watched: bool = False
    _counted: tuple[object, int] | None = field(default=None, init=False)

    @contextlib.contextmanager
    def watch(self, models: Sequence[nn.Module], cached: CachedSlots) -> Iterator[None]:
        """Note each call of the model in a block, for the thread and context of the call.

        Args:
            models: The model, and models within it that are called in its place; of nested calls the outermost counts.
            cached: Tells what a call has cached.
        """

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            outer = _under_way.get()
            if outer is None or outer.module is module:  # the same again: an interrupt ended the one before
                _under_way.set(_Call(module, cached(args, kwargs)))

        def end(module: nn.Module, *_: Any) -> None:
            outer = _under_way.get()
            if outer is not None and outer.module is module:
                _under_way.set(None)

        self.watched = True
        _under_way.set(None)
        with contextlib.ExitStack() as stack:
            for module in models:
                stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True).remove)
                stack.callback(module.register_forward_hook(end, always_call=True).remove)
            yield

    def repeats(self, rows: int) -> int:
        """How often a call of so many rows holds each row of the batch; its row ``r`` is of example ``r // repeats``.

        Raises:
            AnalysisError: The rows are no multiple of the batch.
        """
        count, left = divmod(rows, len(self.inputs))
        if left or not count:
            raise AnalysisError(
                f"The model was called with {rows} rows, and the interventions are made for a batch of "
                f"{len(self.inputs)}. Run the whole batch (each row repeated, for beams or several sequences), or make "
                "the interventions for the rows that run."
            )
        return count

    def here(self, prompt: Tensor, rows: int, length: int, *, later: bool) -> Tensor:
        """What a mask over the prompts says of the slots that a hook sees.

        Args:
            prompt: ``[batch, pos]``, bool.
            rows: Rows that the hook sees.
            length: Slots that the hook sees.
            later: What holds of slots after the prompt.

        Returns:
            ``[rows, length]``, bool.
        """
        first = self.first(length)
        within = prompt[:, first : first + length]
        after = within.new_full((len(within), length - within.shape[1]), later)
        return torch.cat([within, after], dim=1).repeat_interleave(self.repeats(rows), dim=0)

    def first(self, length: int) -> int:
        """Number of the first slot in the call that is under way, which holds so many.

        Raises:
            AnalysisError: It cannot be told.
        """
        if not self.watched:
            return 0
        call = _under_way.get()
        if call is None:
            raise AnalysisError(
                "A part of the model ran outside of a call of the model, so that it cannot be told which tokens it "
                "holds. Call the model itself while interventions are in place."
            )
        if call.first is None:
            call.first = call.cached if isinstance(call.cached, int) else self._count(call.cached)
            self._counted = call.cached, call.first + length
        return call.first

    def _count(self, cache: Any) -> int:
        """Slots of a cache that keeps no keys and does not count: what the calls with it held so far."""
        if self._counted is not None and self._counted[0] is cache:
            return self._counted[1]
        if cache.has_previous_state():
            raise AnalysisError(
                f"The model was called with a {type(cache).__name__} that was filled before the interventions were in "
                "place and does not tell how many tokens it holds. Put the interventions in place before."
            )
        return 0


def slots_in_cache(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | object:
    """``CachedSlots`` for Hugging Face models: their cache, wherever it is among the arguments."""
    for value in (*args, *kwargs.values()):
        if hasattr(value, "get_seq_length"):
            try:
                return int(value.get_seq_length())
            except ValueError:  # a recurrent model's
                return value
    return 0

"""Which slots of the sequences a call of the model covers, while the model generates.

Slots are counted from the start of the padded prompt. What is in the cache of a call comes before what it is given, so
the length of the cache tells its first slot: for one token after the other, a prompt in pieces, or whole sequences
without a cache. The slots of the prompt are its width; all later ones are generated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn

from interpretune.activations.eager import never_compiled
from interpretune.activations.inputs import ModelInputs
from interpretune.errors import AnalysisError
from interpretune.system.own_context import OwnContext

TOKENS = ("input_ids", "input", "inputs_embeds")
"""Arguments in which models take tokens, if it is not the first."""
CachedSlots = Callable[[Sequence[Any], Mapping[str, Any]], "int | object"]
"""From the arguments of a call: how many slots its cache holds, or the cache itself if it does not tell."""


@define(eq=False)
class _Call:
    """A call of the model that is running.

    Attributes:
        module: What was called.
        first: Its first slot; None: it cannot be told.
        length: Slots that it was given; None: it cannot be told.
        keep: The slots whose logits were asked for: a number of last ones, or indices; None or 0: all.
    """

    module: nn.Module
    first: int | None
    length: int | None
    keep: int | Tensor | None


_under_way: ContextVar[_Call | None] = ContextVar("interpretune_call", default=None)


@define(eq=False)
class SequenceSlots:
    """Maps the rows and slots that hooks of a batch see to the prompts and what follows them.

    Attributes:
        inputs: The prompts.
        watched: Whether the calls of the model are watched (``watch``); otherwise there is one call, with the prompts.
    """

    inputs: ModelInputs
    watched: bool = False
    _counted: tuple[object, int] | None = field(default=None, init=False)

    @contextlib.contextmanager
    def watch(self, models: Sequence[nn.Module], cached: CachedSlots) -> Iterator[None]:
        """Record each call of the model in a block, for the thread and context of the call.

        Args:
            models: The model, and models inside it that are called instead; of nested calls the outermost counts.
            cached: Tells what a call has cached.
        """

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            outer = _under_way.get()
            if here.is_here() and (outer is None or outer.module is module):  # the same: an interrupt ended the last
                length = _slots_given(args, kwargs)
                first = self._first(cached(args, kwargs), length)
                _under_way.set(_Call(module, first, length, kwargs.get("logits_to_keep")))

        def end(module: nn.Module, *_: Any) -> None:
            outer = _under_way.get()
            if outer is not None and outer.module is module:
                _under_way.set(None)

        self.watched = True
        _under_way.set(None)
        with OwnContext() as here, contextlib.ExitStack() as stack:
            for module in models:
                first = never_compiled(begin)
                stack.callback(module.register_forward_pre_hook(first, with_kwargs=True, prepend=True).remove)
                stack.callback(module.register_forward_hook(never_compiled(end), always_call=True).remove)
            yield

    def repeats(self, rows: int) -> int:
        """How often a call with this many rows has each row of the batch; row ``r`` is of example ``r // repeats``.

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

    def here(self, prompt: Tensor, rows: int, length: int, *, later: bool, kept: bool = False) -> Tensor:
        """What a mask over the prompts says about the slots that a hook sees.

        Args:
            prompt: ``[batch, pos]``, bool.
            rows: Rows that the hook sees.
            length: Slots that the hook sees.
            later: The value for slots after the prompt.
            kept: As ``numbers`` takes it.

        Returns:
            ``[rows, length]``, bool.
        """
        numbers, width = self.numbers(length, kept=kept), prompt.shape[1]
        found = prompt[:, numbers.clamp(max=width - 1)].masked_fill(numbers >= width, later)
        return found.repeat_interleave(self.repeats(rows), dim=0)

    def numbers(self, length: int, *, kept: bool) -> Tensor:
        """Numbers ``[length]`` of the slots that a hook sees in the running call.

        Args:
            length: How many it sees.
            kept: Whether it is at a hook point that sees only positions whose logits are wanted: while a model
                generates, the last one of a call.

        Raises:
            AnalysisError: They cannot be told.
        """
        slots = torch.arange(length, device=self.inputs.tokens.device)
        if not self.watched:
            return slots
        call = _under_way.get()
        if call is None:
            raise AnalysisError(
                "A part of the model ran outside of a call of the model, so it is unknown which tokens it holds. Call "
                "the model itself while interventions are active."
            )
        if call.first is None:
            raise AnalysisError(
                "The model was called with a cache that was filled before the interventions were active and does not "
                "tell how many tokens it holds, or with tokens that could not be found among its arguments. Make "
                "the interventions active before, and pass input_ids."
            )
        if not kept and call.length is not None and length > call.length:  # keys and values, those in the cache too
            first = call.first + call.length - length
            if first < 0:
                raise AnalysisError(
                    f"A hook sees {length} slots where {call.first + call.length} tokens have run: keys and values lie "
                    "in a cache of a fixed size. Generate with the model's default cache."
                )
            return first + slots
        return call.first + (slots if not kept else _kept(call, slots))

    def _first(self, cached: int | object, length: int | None) -> int | None:
        """The first slot of a call; for a cache that does not count, the slots of the calls with it so far."""
        if isinstance(cached, int):
            return cached
        cache: Any = cached
        if self._counted is not None and self._counted[0] is cache:
            first = self._counted[1]
        elif cache.has_previous_state():
            return None
        else:
            first = 0
        self._counted = None if length is None else (cache, first + length)
        return first


def _kept(call: _Call, slots: Tensor) -> Tensor:
    """Where in a call the positions are whose logits are wanted."""
    count, length, keep = len(slots), call.length, call.keep
    if length is not None and isinstance(keep, Tensor) and len(keep) == count:
        return keep.to(slots.device) % length
    if length is None or (count != length and (isinstance(keep, Tensor) or not keep)):
        raise AnalysisError(
            f"The model gave logits at {count} positions, and its arguments do not tell which of its tokens these "
            "are. Call it with input_ids and logits_to_keep, or ask for logits everywhere: backend.forward(inputs, {})."
        )
    return slots + length - count


def _slots_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """How many slots a call receives, besides those in its cache."""
    given = (*args[:1], *(kwargs.get(name) for name in TOKENS))
    tokens = next((item for item in given if isinstance(item, Tensor)), None)
    return None if tokens is None else tokens.shape[min(tokens.ndim - 1, 1)]


def slots_in_cache(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | object:
    """``CachedSlots`` for Hugging Face models: their cache, wherever it is among the arguments."""
    for value in (*args, *kwargs.values()):
        if hasattr(value, "get_seq_length"):
            try:
                return int(value.get_seq_length())
            except ValueError:  # a recurrent model's
                return value
    return 0

"""What a backend supplies so that single tokens can be rerun."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interpretune.activations.edits import Edit
from interpretune.activations.inputs import ModelInputs, Points
from interpretune.activations.replaced import replaced_method, replaced_methods, standing_method
from interpretune.errors import ReplayRefusedError
from interpretune.replay.prefix import Prefix, Rows
from interpretune.replay.suffix_rows import SuffixRows
from interpretune.system.own_context import OwnContext
from interpretune.system.placement import weights_in_place

if TYPE_CHECKING:
    from interpretune.backends.backend import AnalysisBackend

ReadyContext = Callable[[], contextlib.AbstractContextManager[None]]
"""Makes a context in which an engine is ready for replays."""


class ReplayEngine(ABC):
    """Stores keys and values of a forward and runs single tokens over them, from any block up.

    The residual stream before block ``i`` must be the hook point ``layers.{i}.resid_pre``.

    Attributes:
        backend: Runs the model.
        blocks: Its blocks, in order.
        in_tuple: Whether they return the residual stream in a tuple.
    """

    backend: AnalysisBackend
    blocks: Sequence[nn.Module]
    in_tuple = False

    def __init__(self, backend: AnalysisBackend, blocks: Sequence[nn.Module]) -> None:
        self.backend = backend
        self.blocks = list(blocks)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def prepare(self, first_block: int) -> ReadyContext:
        """Prepare for replays. There may be none, so do anything expensive inside the context.

        Args:
            first_block: The lowest block at which replays will begin.

        Returns:
            A function that makes the context for each replay of one prefill; it lives as long as the prefill.
        """
        return contextlib.nullcontext

    @abstractmethod
    def depth(self, hook_point: str) -> float:
        """Where a hook point is: ``i`` at the input of block ``i``, ``i + 0.5`` within it, ``i + 0.9`` at its output.

        Raises:
            ReplayRefusedError: It is not inside a block.
        """

    @abstractmethod
    def prefill(
        self, inputs: ModelInputs, edits: Mapping[str, Edit], points: Points, first_block: int
    ) -> tuple[Tensor, Prefix]:
        """One forward of the whole batch that stores keys and values of ``first_block`` and all blocks above.

        Batches with other inputs (``inputs.extra``) are refused before they get here.

        Returns:
            Logits at the points, ``[n, vocab]``, and the prefix.

        Raises:
            ReplayRefusedError: The forward shows that this model cannot be replayed exactly.
        """

    @abstractmethod
    def replay(
        self,
        prefix: Prefix,
        rows: Rows,
        start: int,
        hidden: Tensor,
        edits: Mapping[str, Edit],
        columns: Tensor | None,
    ) -> Tensor:
        """Run one token for each row, from block ``start`` up.

        Args:
            prefix: Keys and values; not changed.
            rows: Which token each row runs.
            start: First block to run; ``n_blocks`` runs none.
            hidden: Residual stream before block ``start``, ``[n, d_model]``.
            edits: At hook points of what runs; activations are ``[n, 1, ...]``.
            columns: Ids of the logits wanted, ``[c]``; None: all.

        Returns:
            ``[n, c]``.
        """

    def replay_suffixes(
        self,
        prefix: Prefix,
        rows: SuffixRows,
        start: int,
        hidden: Tensor,
        edits: Mapping[str, Edit],
        columns: Tensor | None,
    ) -> Tensor:
        """Run the tokens of each row, from block ``start`` up; without this method, ablations run whole forwards.

        Args:
            prefix: Keys and values; not changed.
            rows: Which tokens each row runs.
            start: First block to run; ``n_blocks`` runs none.
            hidden: Residual stream before block ``start``, ``[n, s, d_model]``.
            edits: At hook points of what runs; activations are ``[n, s, ...]``.
            columns: Ids of the logits wanted, ``[c]``; None: all.

        Returns:
            ``[n, w, c]``, where the rows want logits.

        Raises:
            ReplayRefusedError: There is no way to do so.
        """
        raise ReplayRefusedError(f"{type(self).__name__} reruns single tokens, not the tokens after them.")

    def run_from(
        self, inputs: ModelInputs, start: int, hidden: Tensor, edits: Mapping[str, Edit], points: Points
    ) -> Tensor:
        """Run whole rows from block ``start`` up.

        Args:
            inputs: The rows.
            start: First block to run.
            hidden: Residual stream before it, ``[n, pos, d_model]``.
            edits: At hook points of what runs.
            points: Where logits are wanted.

        Returns:
            ``[len(points), vocab]``.
        """
        with blocks_below_skipped(self.blocks, start, hidden, in_tuple=self.in_tuple):
            return self.backend.forward(inputs, edits, points)


@contextlib.contextmanager
def blocks_below_skipped(blocks: Sequence[nn.Module], start: int, hidden: Tensor, *, in_tuple: bool) -> Iterator[None]:
    """Let a model run from block ``start`` up on the given residual stream.

    The blocks below do nothing, and the last of them returns ``hidden``. Block 0 itself receives ``hidden`` instead of
    the embedding. This holds only for the thread and context of the caller (``interpretune.system.own_context``).

    Args:
        blocks: The model's blocks, in order.
        start: First block to run.
        hidden: ``[n, pos, d_model]``.
        in_tuple: Whether the model expects the residual stream in a tuple.
    """

    def skipped(hidden_states: Tensor, *_: object, **__: object) -> object:
        return (hidden_states,) if in_tuple else hidden_states

    def handed_out(*_: object, **__: object) -> object:
        return (hidden,) if in_tuple else hidden

    methods = [(blocks[index], "forward", handed_out if index == start - 1 else skipped) for index in range(start)]
    with replaced_methods(methods), _put_in(blocks[0], hidden) if start == 0 else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _put_in(block: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Give a block another residual stream."""
    with OwnContext() as here:

        def put_in(_: nn.Module, args: Any, kwargs: Any = None) -> Any:
            if kwargs is None or not here.is_here():  # torch leaves kwargs out of hooks that are being taken off
                return None
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        handle = block.register_forward_pre_hook(put_in, with_kwargs=True, prepend=True)
        try:
            yield
        finally:
            handle.remove()


@contextlib.contextmanager
def columns_only(head: nn.Module, columns: Tensor | None) -> Iterator[bool]:
    """Let a model's own unembedding compute only some columns, so that its scaling and soft-capping still apply.

    Args:
        head: The unembedding.
        columns: Ids of the logits wanted, ``[c]``; None: all.

    Yields:
        Whether only the columns are computed. False if the unembedding is not a plain linear map.
    """
    if columns is None or type(head) is not nn.Linear:
        yield columns is None
        return
    with weights_in_place(head):
        ids = columns.to(head.weight.device)
        weight = head.weight[ids]
        bias = None if head.bias is None else head.bias[ids]

    def narrow(activations: Tensor) -> Tensor:
        return nn.functional.linear(activations.to(weight.device), weight, bias)

    with replaced_method(head, "forward", narrow):
        yield True


@contextlib.contextmanager
def positions_only(head: nn.Module, wanted: Tensor) -> Iterator[None]:
    """Let a model's own unembedding compute only some positions of each row.

    Args:
        head: The unembedding, which gets ``[n, pos, d_model]``.
        wanted: Positions, ``[n, w]``; its result is ``[n, w, vocab]``.
    """
    unembed, rows = standing_method(head, "forward"), torch.arange(len(wanted), device=wanted.device).unsqueeze(-1)

    def narrow(activations: Tensor) -> Any:
        if activations.ndim != 3 or len(activations) != len(wanted):
            raise ReplayRefusedError(
                f"The unembedding of the model gets {tuple(activations.shape)}; expected {len(wanted)} rows of tokens."
            )
        return unembed(activations[rows.to(activations.device), wanted.to(activations.device)])

    with replaced_method(head, "forward", narrow):
        yield


@torch.no_grad()
def check_causal(logits_of: Callable[[ModelInputs], Tensor], device: torch.device) -> None:
    """Refuse a model whose logits at a token depend on a later token, or on chance.

    Args:
        logits_of: Runs the model on ``ModelInputs`` and returns logits ``[batch, pos, vocab]``.
        device: Device of the model.

    Raises:
        ReplayRefusedError: The model looks ahead, or does not repeat itself.
    """
    tokens = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 2]], device=device)
    logits = logits_of(ModelInputs(tokens, torch.ones_like(tokens)))
    tolerance = 64 * torch.finfo(logits.dtype).eps * max(1.0, logits.abs().max().item())
    repeated, difference = ((logits[0, 1] - logits[row, 1]).abs().max().item() for row in (1, 2))
    if not repeated <= tolerance:
        raise ReplayRefusedError(
            f"The model does not repeat itself: the same tokens twice differ by {repeated:.3g} (dropout in training?)."
        )
    if not difference <= tolerance:
        raise ReplayRefusedError(
            f"The model is not causal: another third token changes its logits at the second by {difference:.3g}."
        )

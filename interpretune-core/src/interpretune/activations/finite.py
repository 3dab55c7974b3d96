"""Refuses numbers that are NaN or infinite, and names their rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interpretune.activations.finite_causes import likely_cause, why_not_finite
from interpretune.errors import BATCH, NotFiniteError

if TYPE_CHECKING:
    from interpretune.activations.edits import Edit
    from interpretune.activations.hooked_model import HookedModel
    from interpretune.activations.inputs import ModelInputs, Points


def rows_not_finite(values: Tensor) -> list[int]:
    """Which rows of ``[n, ...]`` hold a number that is NaN or infinite."""
    found: list[int] = (~values.detach().reshape(len(values), -1).isfinite().all(-1)).nonzero().flatten().tolist()
    return found


def check_rows(values: Tensor, what: str, reason: str, rows: Sequence[int] | Tensor | None = None) -> None:
    """Refuse numbers ``[n, ...]`` that are not finite.

    Args:
        values: The numbers.
        what: What they are, as the beginning of a sentence.
        reason: Where they come from and what to do, as sentences.
        rows: The examples of the batch that they belong to, ``[n]``; None: one each.

    Raises:
        NotFiniteError: With the examples.
    """
    if not bool(values.detach().isfinite().all()):
        bad = rows_not_finite(values)
        raise NotFiniteError(what, bad if rows is None else sorted({int(rows[i]) for i in bad}), reason)


def lacks_logits(logits: Tensor) -> Tensor:
    """Where logits ``[..., vocab]`` are useless, ``[...]``, bool: one is NaN or infinite, or all are ruled out.

    Minus infinity for some tokens is how models rule tokens out, and is not an error.
    """
    return ~logits.detach().amax(dim=-1).isfinite()


def check_logits(
    backend: HookedModel, logits: Tensor, inputs: ModelInputs, edits: Mapping[str, Edit], points: Points | None
) -> None:
    """Refuse results of a forward that are not finite; logits of padding are ignored.

    Args:
        backend: What ran the forward.
        logits: ``[n, vocab]`` at points, or ``[batch, pos, vocab]``.
        inputs: The batch.
        edits: What was edited.
        points: Where logits were wanted; None: everywhere.

    Raises:
        NotFiniteError: With the rows, where it begins, and the likely cause.
    """
    if not logits.numel():
        return
    lacking = lacks_logits(logits)
    if points is None and lacking.shape == inputs.attention_mask.shape:
        lacking &= inputs.attention_mask.bool()
    if not bool(lacking.any()):
        return
    rows = lacking.any(-1).nonzero().flatten() if points is None else points.examples[lacking]
    found = sorted(set(rows.tolist()))
    raise NotFiniteError("Logits", found, why_not_finite(backend, inputs, edits, found))


def check_outputs(model: nn.Module, outputs: Any, attention_mask: Tensor | None) -> None:
    """Refuse results of a session's model that are not finite; logits of padding are ignored.

    Args:
        model: The model.
        outputs: Logits ``[batch, pos, vocab]`` or ``[batch, num_labels]``, or an object that has them as ``logits``;
            anything else is not looked at.
        attention_mask: ``[batch, pos]``; None: nothing is padding.

    Raises:
        NotFiniteError: With the rows and the likely cause.
    """
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim < 2 or not logits.numel():
        return
    lacking = lacks_logits(logits)
    if attention_mask is not None and lacking.shape == attention_mask.shape:
        lacking &= attention_mask.to(lacking.device).bool()
    if bool(lacking.any()):
        rows = lacking.flatten(1).any(-1) if lacking.ndim > 1 else lacking
        raise NotFiniteError("Logits", rows.nonzero().flatten().tolist(), likely_cause(model))


def check_generated(model: nn.Module, generated: Any) -> None:
    """Refuse generated tokens whose logits are not finite.

    Args:
        model: The model.
        generated: Has ``logits``, a tuple of ``[batch, vocab]``, or none.

    Raises:
        NotFiniteError: With the rows, and the new token at which they begin.
    """
    steps = getattr(generated, "logits", None)
    if not isinstance(steps, (tuple, list)) or not steps:
        return
    lacking = torch.stack([lacks_logits(logits) for logits in steps])
    if not bool(lacking.any()):
        return
    first = int(lacking.any(dim=-1).nonzero()[0])
    rows = lacking.any(dim=0).nonzero().flatten().tolist()
    raise NotFiniteError(
        "Logits of generated tokens",
        rows,
        f"They begin at new token {first + 1}. {likely_cause(model)}",
    )


@contextlib.contextmanager
def rows_named(names: Sequence[int] | Tensor, of: str = BATCH) -> Iterator[None]:
    """Let an error of the block that numbers rows of the batch call row ``i`` by ``names[i]``."""
    try:
        yield
    except NotFiniteError as error:
        if error.of != BATCH:
            raise
        raise error.renamed(names, of) from None

"""Refuses numbers that are NaN or infinite, names the rows that have them, and tells where it begins and why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field
from torch import Tensor, nn

from interpretune.activations.edits import in_turn
from interpretune.activations.hook_names import EMBED, FINAL_NORM, LOGITS, in_layer, split_layer
from interpretune.errors import BATCH, HookPointError, NotFiniteError
from interpretune.system.model_lock import model_lock
from interpretune.system.placement import weights_in_place

if TYPE_CHECKING:
    from interpretune.activations.edits import Edit
    from interpretune.activations.hooked_model import HookedModel
    from interpretune.activations.inputs import ModelInputs, Points

LIKELY: Mapping[torch.dtype | None, str] = {
    torch.float16: "The likely cause is an overflow of float16: load the model in bfloat16 or float32. ",
    torch.float64: (
        "The likely cause is eager attention of padding that sees no token: load the model with "
        "attn_implementation='sdpa', or in float32. "
    ),
}
"""Causes by dtype, told without running the model again."""


def why_not_finite(backend: HookedModel, inputs: ModelInputs, edits: Mapping[str, Edit], rows: Sequence[int]) -> str:
    """Where it begins, the likely cause, and what to do, as sentences.

    The forward runs once more and is watched at the canonical hook points.
    """
    if damaged := _damaged(backend.model):
        return damaged
    watch = _Watch(torch.tensor(rows, device=inputs.tokens.device), inputs.attention_mask.bool())
    with model_lock(backend.model), torch.no_grad(), backend.counted_hooks(_watched(backend, edits, watch)):
        backend.run_model(inputs, None)
    return f"{watch.where} {watch.cause(backend, edits)}"


def likely_cause(model: nn.Module) -> str:
    """The likely cause and what to do, as sentences, from the model alone."""
    if damaged := _damaged(model):
        return damaged
    dtype = next((item.dtype for item in model.parameters()), None)
    likely = LIKELY.get(dtype, "")
    return (
        f"{likely}`module.backend.forward(ModelInputs.from_batch(batch), {{}})` on the same rows says where "
        "in the model it begins."
    )


def _damaged(model: nn.Module) -> str | None:
    with model_lock(model):  # offloaded weights are filled in and taken out, which another forward must not meet
        for path, module in model.named_modules():
            with weights_in_place(module):
                for name, item in module.named_parameters(path, recurse=False):
                    if not _sound(item):
                        return f"The weights of the model hold NaN or infinity, first in {name}. Load them again."
    return None


def _watched(backend: HookedModel, edits: Mapping[str, Edit], watch: _Watch) -> dict[str, Edit]:
    """The edits, and an observer at every canonical hook point after the edits there."""
    chains: dict[str, list[Edit]] = {}
    for name, edit in edits.items():
        chains.setdefault(backend.resolve_hook_point(name), []).append(edit)
    for name in backend.hook_point_names():
        layer = split_layer(name)
        if name in (EMBED, FINAL_NORM, LOGITS) or (layer is not None and name == in_layer(*layer)):
            try:
                backend.resolve_hook_point(name)
            except HookPointError:  # a name that this model's blocks do not bear out
                continue
            chains.setdefault(name, []).append(watch.at(name))
    return {name: in_turn(chain) for name, chain in chains.items()}


@define(eq=False)
class _Watch:
    """What a forward shows at hook points, in the order in which it reaches them."""

    rows: Tensor
    mask: Tensor
    real: str | None = None
    padding: str | None = None
    largest: float = 0.0
    dtype: torch.dtype = field(default=torch.float32)

    def at(self, name: str) -> Edit:
        """An edit that changes nothing and records what it sees."""

        def look(activations: Tensor) -> Tensor:
            if activations.ndim >= 3 and activations.shape[:2] == self.mask.shape:
                flat = activations.flatten(2)[self.rows]
                lacking = (flat.amax(-1).isfinite() & flat.amin(-1).isfinite()).logical_not()
                if name == LOGITS:  # tokens may be ruled out by minus infinity
                    lacking = flat.amax(-1).isfinite().logical_not()
                mask = self.mask[self.rows]
                if self.padding is None and bool((lacking & ~mask).any()):
                    self.padding = name
                if self.real is None and bool((lacking & mask).any()):
                    self.real = name
                if self.real is None and name != LOGITS:
                    self.largest = max(self.largest, flat.masked_fill(lacking.unsqueeze(-1), 0).abs().max().item())
                self.dtype = flat.dtype
            return activations

        return look

    @property
    def where(self) -> str:
        """The hook point where it begins, as a sentence."""
        if self.real is None:
            return "All hook points are finite: it begins in what the model does with its logits."
        before = f"in padding at {self.padding} and reaches real tokens " if self._spreads else ""
        return f"It begins {before}at {self.real}."

    @property
    def _spreads(self) -> bool:
        return self.padding is not None and self.padding != self.real

    def cause(self, backend: HookedModel, edits: Mapping[str, Edit]) -> str:
        """The likely cause and what to do, as sentences."""
        limit = torch.finfo(self.dtype).max
        if self.real is not None and self.real in {backend.resolve_hook_point(name) for name in edits}:
            return (
                "That is where a latent model or an intervention writes: look at its weights and at the values that it "
                "puts in."
            )
        if self._spreads:
            return (
                "The likely cause is attention of padding that sees no token: eager attention normalises it to NaN, "
                "which 0 x NaN hands on. Load the model with attn_implementation='sdpa', or in float32."
            )
        if self.largest > limit / 64 or self.dtype == torch.float16:
            return (
                f"The likely cause is an overflow of {str(self.dtype).removeprefix('torch.')}, which ends at "
                f"{limit:.3g}: the largest activation before is {self.largest:.3g}. Load the model in bfloat16 or "
                "float32."
            )
        return (
            f"The largest activation before is {self.largest:.3g}. Look at what stands there with "
            "backend.run_with_cache, and at the module that writes it."
        )


def _sound(parameter: Tensor) -> bool:
    return not parameter.is_floating_point() or bool(parameter.detach().isfinite().all())


def rows_not_finite(values: Tensor) -> list[int]:
    """Which rows of ``[n, ...]`` hold a number that is NaN or infinite."""
    return (~values.detach().reshape(len(values), -1).isfinite().all(-1)).nonzero().flatten().tolist()


def check_rows(values: Tensor, what: str, reason: str, rows: Sequence[int] | Tensor | None = None) -> None:
    """Refuse numbers ``[n, ...]`` that are not finite (``NotFiniteError``).

    Args:
        values: The numbers.
        what: What they are, as the beginning of a sentence.
        reason: Where they come from and what to do, as sentences.
        rows: The examples of the batch that they belong to, ``[n]``; None: one each.
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
    """Refuse results of a forward that are not finite (``NotFiniteError``); logits of padding are ignored.

    Args:
        backend: What ran the forward.
        logits: ``[n, vocab]`` at points, or ``[batch, pos, vocab]``.
        inputs: The batch.
        edits: What was edited.
        points: Where logits were wanted; None: everywhere.
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
    """Refuse results of a session's model that are not finite (``NotFiniteError``); logits of padding are ignored.

    Args:
        model: The model.
        outputs: Logits ``[batch, pos, vocab]`` or ``[batch, num_labels]``, or an object that has them as ``logits``;
            anything else is not looked at.
        attention_mask: ``[batch, pos]``; None: nothing is padding.
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
    """Refuse generated tokens whose logits are not finite (``NotFiniteError``).

    Args:
        model: The model.
        generated: Has ``logits``, a tuple of ``[batch, vocab]``, or none.
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
        "Logits of generated tokens", rows, f"They begin at new token {first + 1}. {likely_cause(model)}"
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

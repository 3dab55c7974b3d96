"""Checks by a forward that the hook points of a block are what their names say."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interpretune.activations.edits import Edit
from interpretune.activations.hook_names import ATTN_OUT, MLP_OUT, RESID_MID, RESID_POST, RESID_PRE, in_layer
from interpretune.activations.inputs import probe_inputs
from interpretune.errors import AnalysisError
from interpretune.system.put_back import attribute_put_back

if TYPE_CHECKING:
    from interpretune.activations.hooked_model import HookedModel

CHECKED = (ATTN_OUT, RESID_MID, MLP_OUT)
"""Parts of a block that the structure of its modules cannot prove."""

REMAINDER = 0.1
"""Largest unexplained share of what is added to the residual stream; weights of few bits round."""

LEAST = 0.01
"""Smallest factor on something that is added to the residual stream; Granite has one of about 0.2."""


@torch.no_grad()
def parts_as_named(hooked: HookedModel, parts: Mapping[int, Sequence[str]]) -> frozenset[str]:
    """The hook points among ``CHECKED`` that are what their names say.

    One forward of two tokens: attention and MLP write random vectors, and a third is added between them. The block must
    have added exactly these to the residual stream, and at ``resid_mid`` only the first. What attention and MLP add may
    be multiplied by a constant.

    The vectors are as large as the residual stream before the block, and after the block that stream is restored. So
    they are not lost in the rounding of a larger stream, and many blocks in 16 bits do not overflow.

    Args:
        hooked: The model.
        parts: For each layer, the names of all its hook points. A layer that lacks one of those that touch the
            residual stream cannot be checked and is trusted.
    """
    layers = [layer for layer, found in parts.items() if {RESID_PRE, ATTN_OUT, MLP_OUT, RESID_POST} <= set(found)]
    checked = {layer: [in_layer(layer, part) for part in CHECKED if part in parts[layer]] for layer in layers}
    unchecked = frozenset(
        in_layer(layer, part) for layer in parts.keys() - set(layers) for part in CHECKED if part in parts[layer]
    )
    draw = torch.Generator().manual_seed(0)
    seen: dict[str, Tensor] = {}
    drawn: dict[str, Tensor] = {}

    def note(name: str) -> Edit:
        return lambda activations: seen.setdefault(name, activations.clone())

    def note_and_undo(layer: int) -> Edit:
        def apply(activations: Tensor) -> Tensor:
            seen.setdefault(in_layer(layer, RESID_POST), activations.clone())
            return seen.get(in_layer(layer, RESID_PRE), activations).clone()

        return apply

    def write(layer: int, name: str) -> Edit:
        def apply(activations: Tensor) -> Tensor:
            seen[name] = activations.clone()
            stream = seen.get(in_layer(layer, RESID_PRE), activations)
            drawn[name] = (_size(stream) * torch.randn(activations.shape, generator=draw)).to(activations)
            return activations + drawn[name] if name == in_layer(layer, RESID_MID) else drawn[name].clone()

        return apply

    edits = {in_layer(layer, RESID_PRE): note(in_layer(layer, RESID_PRE)) for layer in layers}
    edits |= {in_layer(layer, RESID_POST): note_and_undo(layer) for layer in layers}
    edits |= {name: write(layer, name) for layer, names in checked.items() for name in names}
    if layers:
        with _evaluating(hooked.model), hooked.hooked(edits):
            hooked.run_model(probe_inputs(hooked.model_device), None)

    def real(layer: int) -> Iterator[str]:
        pre, post, middle = (in_layer(layer, part) for part in (RESID_PRE, RESID_POST, RESID_MID))
        if pre not in seen or post not in seen:
            return
        written = [name for name in checked[layer] if name in drawn]
        factors = _factors(_added(layer, seen[post], seen[pre]), [drawn[name] for name in written])
        for name, factor in zip(written, factors, strict=True):
            if name != middle:
                if factor > LEAST:
                    yield name
            elif abs(factor - 1) < REMAINDER:
                before = _factors(_added(layer, seen[middle], seen[pre]), [drawn[in_layer(layer, ATTN_OUT)]])
                if before and before[0] > LEAST:
                    yield name

    return unchecked.union(*(real(layer) for layer in layers))


def _size(stream: Tensor) -> float:
    """Spread of the residual stream, or 1 if it has none."""
    size = stream.double().std().item()
    return size if math.isfinite(size) and size > 0 else 1.0


def _added(layer: int, after: Tensor, before: Tensor) -> Tensor:
    """What has been added to the residual stream, ``[batch * pos * width]``, float64.

    Raises:
        AnalysisError: It is not finite.
    """
    added = after.double().cpu().flatten() - before.double().cpu().flatten()
    if not added.isfinite().all():
        raise AnalysisError(
            f"The residual stream of block {layer} is not finite in a forward of two tokens, so that nothing can be "
            f"edited there. The model computes in {str(after.dtype).removeprefix('torch.')}; load it in one whose "
            "range is large enough (bfloat16 or float32)."
        )
    return added


def _factors(total: Tensor, parts: Sequence[Tensor]) -> list[float]:
    """Factors with which the parts sum to the total; zeros if they do not."""
    columns = torch.stack([part.double().flatten() for part in parts], dim=1).cpu()
    found = torch.linalg.lstsq(columns, total.unsqueeze(1)).solution
    left = total - (columns @ found).flatten()
    return found.flatten().tolist() if left.norm() < REMAINDER * total.norm() else [0.0] * len(parts)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, without dropout, for the duration of a block."""
    parts = list(model.modules())
    with attribute_put_back(parts, "training"):
        for module in parts:
            module.training = False
        yield

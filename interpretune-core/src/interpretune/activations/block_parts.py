"""Checks by a forward that the hook points of a block are what their names say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpretune.activations.edits import Edit
from interpretune.activations.hook_names import ATTN_OUT, MLP_ACT, MLP_OUT, RESID_MID, RESID_POST, RESID_PRE, in_layer
from interpretune.activations.inputs import probe_inputs
from interpretune.errors import AnalysisError
from interpretune.system.torch_state import eval_mode

if TYPE_CHECKING:
    from interpretune.activations.hooked_model import HookedModel

ADDED = (ATTN_OUT, RESID_MID, MLP_OUT)
"""Parts of a block whose activations are added to the residual stream, or are that stream."""

CHECKED = (*ADDED, MLP_ACT)
"""Parts of a block that the structure of its modules cannot prove."""

REMAINDER = 0.1
"""Largest unexplained share of what is added to the residual stream; weights of few bits round."""

LEAST = 0.01
"""Smallest factor on something that is added to the residual stream; Granite has one of about 0.2."""


COMBINED = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
"""How often each of two random vectors is in what is written at ``mlp_act``, for each token."""

LARGER = 4
"""How much larger than the activations that is: non-linearities are nearly linear in small numbers."""


def expected_at(part: str) -> str:
    """What an activation must be to bear the name of a checked part."""
    return "what the last projection of the MLP reads" if part == MLP_ACT else "what is added to the residual stream"


@torch.no_grad()
def parts_as_named(hooked: HookedModel, parts: Mapping[int, Sequence[str]]) -> frozenset[str]:
    """The hook points among ``CHECKED`` that are what their names say.

    One forward of four tokens: attention and MLP write random vectors, and a third is added between them. The block
    must have added exactly these to the residual stream, and at ``resid_mid`` only the first. What attention and MLP
    add may be multiplied by a constant.

    The vectors are as large as the residual stream before the block, and after the block that stream is restored. So
    they are not lost in the rounding of a larger stream, and many blocks in 16 bits do not overflow.

    At ``mlp_act``, the tokens are given nothing, a vector, another, and the sum of both. The MLP must return for the
    sum what it returns for the others together, as it does if an affine map, and possibly a norm, is all that follows.

    Args:
        hooked: The model.
        parts: For each layer, the names of all its hook points. A layer that lacks one of those that touch the
            residual stream cannot be checked and is trusted, except at ``mlp_act``.
    """
    layers = [layer for layer, found in parts.items() if {RESID_PRE, ATTN_OUT, MLP_OUT, RESID_POST} <= set(found)]
    checked = {layer: [in_layer(layer, part) for part in ADDED if part in parts[layer]] for layer in layers}
    neurons = [layer for layer, found in parts.items() if {MLP_ACT, MLP_OUT} <= set(found)]
    unchecked = frozenset(
        in_layer(layer, part) for layer in parts.keys() - set(layers) for part in ADDED if part in parts[layer]
    )
    draw = torch.Generator().manual_seed(0)
    seen: dict[str, Tensor] = {}
    drawn: dict[str, Tensor] = {}
    repeated: set[str] = set()

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

    def combine(name: str) -> Edit:
        def apply(activations: Tensor) -> Tensor:
            if name in drawn:  # blocks that share an MLP
                repeated.add(name)
            if activations.shape[:-1] != (1, len(COMBINED)):
                return activations
            vectors = LARGER * _size(activations) * torch.randn(2, activations.shape[-1], generator=draw)
            drawn[name] = (COMBINED @ vectors).unsqueeze(0).to(activations)
            return drawn[name].clone()

        return apply

    def note_and_drop(name: str) -> Edit:
        return lambda activations: torch.zeros_like(seen.setdefault(name, activations.clone()))

    edits = {in_layer(layer, MLP_ACT): combine(in_layer(layer, MLP_ACT)) for layer in neurons}
    edits |= {in_layer(layer, MLP_OUT): note_and_drop(in_layer(layer, MLP_OUT)) for layer in neurons}
    edits |= {in_layer(layer, RESID_PRE): note(in_layer(layer, RESID_PRE)) for layer in layers}
    edits |= {in_layer(layer, RESID_POST): note_and_undo(layer) for layer in layers}
    edits |= {name: write(layer, name) for layer, names in checked.items() for name in names}
    if edits:
        with eval_mode(hooked.model), hooked.hooked(edits):
            hooked.run_model(probe_inputs(hooked.model_device, len(COMBINED)), None)

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

    def reads(layer: int) -> bool:
        """Whether ``mlp_act`` of a block is what the last projection of its MLP reads."""
        written, returned = drawn.get(in_layer(layer, MLP_ACT)), seen.get(in_layer(layer, MLP_OUT))
        if written is None or returned is None or in_layer(layer, MLP_ACT) in repeated:
            return False
        stream = [drawn[name] for part in (ATTN_OUT, RESID_MID) if (name := in_layer(layer, part)) in drawn]
        alone = returned - sum(stream, torch.zeros_like(returned))  # of an MLP that returns the sum with the stream
        return _is_affine(written, returned) or _is_affine(written, alone)

    act = (in_layer(layer, MLP_ACT) for layer in neurons if reads(layer))
    return unchecked.union(*(real(layer) for layer in layers), act)


def _size(stream: Tensor) -> float:
    """Spread of the residual stream, or 1 if it has none."""
    size = stream.double().std().item()
    return size if math.isfinite(size) and size > 0 else 1.0


def _added(layer: int, after: Tensor, before: Tensor) -> Tensor:
    """What has been added to the residual stream, ``[batch * pos * width]``, float64."""
    added = after.double().cpu().flatten() - before.double().cpu().flatten()
    if not added.isfinite().all():
        raise AnalysisError(
            f"The residual stream of block {layer} is not finite in a forward of four tokens, so that nothing can be "
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


def _is_affine(written: Tensor, returned: Tensor) -> bool:
    """Whether an affine map, and possibly a norm, leads from ``COMBINED`` of two vectors to something else."""
    if returned.shape[:-1] != written.shape[:-1] or not returned.isfinite().all():
        return False
    nothing, one, other, both = returned[0].double().cpu()
    if written.shape == returned.shape and any(_factors(both, [written[0, -1]])):
        return False
    columns = torch.stack([nothing, one, other], dim=1)
    left = both - columns @ torch.linalg.pinv(columns) @ both
    return bool(left.norm() < REMAINDER * (both - nothing).norm())

"""Rules of what lies above the blocks: the last norm, and the unembedding."""

from __future__ import annotations

import torch
from torch import Tensor

from interpretune.activations.hook_names import FINAL_NORM, LOGITS, RESID_POST, in_layer
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.hook_points import offers
from interpretune.testing.rule import RuleSkipped, expect, rule
from interpretune.testing.workbench import Bench

DIRECTIONS = 3
"""Random vectors beside those of the model."""


@rule(stack=True, after=["edits-are-made"])
def unembedding_agrees(bench: Bench) -> None:
    """The last norm and the unembedding make of any vectors what the plain model makes of them, with gradients."""
    last = in_layer(reference.n_layers(bench.reference) - 1, RESID_POST)
    missing = [name for name in (last, FINAL_NORM, LOGITS) if not offers(bench.backend, name)]
    if missing:
        raise RuleSkipped(f"the backend does not offer {', '.join(missing)}")
    row = bench.even_rows[0]
    seen = reference.activations_of(bench.reference, row, [last])[last]
    draw = torch.Generator().manual_seed(bench.seed)
    random = torch.randn(DIRECTIONS, seen.shape[-1], generator=draw) * seen.std()
    vectors = torch.cat([seen[-2:], random.to(seen)])
    with torch.no_grad():
        wanted = torch.stack([_by_the_plain_model(bench, row, last, vector) for vector in vectors])
        normed = bench.backend.final_norm(vectors.to(bench.module.device))
        same(bench.backend.unembed(normed), wanted, "logits of unembed(final_norm(vectors))")
    with torch.enable_grad():
        leaf = normed.detach().clone().requires_grad_()
        logits = bench.backend.unembed(leaf)
        expect(logits.requires_grad, "logits of unembed() have no gradient", "one with respect to what it is given")
        (found,) = torch.autograd.grad(logits[:, 0].sum(), [leaf])
    step = 1e-2 * torch.randn(found.shape, generator=draw).to(found)
    with torch.no_grad():
        change = (bench.backend.unembed(leaf + step) - bench.backend.unembed(leaf - step))[:, 0] / 2
    same((found * step).sum(-1), change, "slopes of unembed() times a small step", tolerance=1e-2)


def _by_the_plain_model(bench: Bench, row: Tensor, last: str, vector: Tensor) -> Tensor:
    """Logits ``[vocab]`` at the last token, if this is the residual stream after the last block there."""

    def put(activations: Tensor) -> Tensor:
        changed = activations.clone()
        changed[:, -1] = vector
        return changed

    return reference.logits_of(bench.reference, row, [(last, put)])[reference.ANSWER]

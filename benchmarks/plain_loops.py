"""Ablation, attribution and edges as everybody runs them: whole forwards and backwards, one for each latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.analysis import AnalysisBackend, ModelInputs, activation_name


def ablate_in_loop(
    backend: AnalysisBackend,
    inputs: ModelInputs,
    models: Sequence[Any],
    name: str,
    latent: int | Tensor,
    *,
    narrow: bool,
) -> Tensor:
    """One turn of the plain loop: the whole batch with latents zeroed at the answers, ``[batch, vocab]``."""
    answers = inputs.answers

    def zero(latents: Tensor) -> Tensor:
        latents = latents.clone()
        latents[answers.examples.unsqueeze(-1), answers.positions.unsqueeze(-1), latent] = 0
        return latents

    with torch.no_grad():
        edits, _ = backend.splice_edits(inputs, models, {name: zero})
        return backend.forward(inputs, edits, answers) if narrow else answers.of(backend.forward(inputs, edits))


def zeroed_forward(
    backend: AnalysisBackend,
    inputs: ModelInputs,
    models: Sequence[Any],
    changed: Mapping[str, Tensor],
    record: Sequence[str] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """A whole forward in which each row has latents of its own zeroed, one position unembedded.

    Args:
        backend: Runs the model.
        inputs: The rows.
        models: Spliced in.
        changed: Row, slot and latent of each zero, ``[k, 3]`` by activation name.
        record: Activation names of models whose latents are wanted.

    Returns:
        Logits ``[rows, vocab]``, and latents ``[rows, slots, d_sae]``.
    """

    def zero(where: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda latents: latents.index_put(where.unbind(-1), latents.new_zeros(()))

    with torch.no_grad():
        edits, seen = backend.splice_edits(inputs, models, {name: zero(at) for name, at in changed.items()}, record)
        return backend.forward(inputs, edits, inputs.answers), seen


def full_gradients(
    backend: AnalysisBackend, inputs: ModelInputs, models: Sequence[Any], columns: Tensor
) -> dict[str, Tensor]:
    """Attribution as usual: every parameter wants a gradient, all positions are unembedded."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[Tensor], Tensor]:
        def keep(latents: Tensor) -> Tensor:
            seen[name] = latents
            latents.retain_grad()
            return latents

        return keep

    parameters = [p for owner in (backend.model, *models) for p in owner.parameters() if p.is_floating_point()]
    flags = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    with torch.enable_grad():
        edits, _ = backend.splice_edits(inputs, models, {activation_name(m): watch(activation_name(m)) for m in models})
        logits = inputs.answers.of(backend.forward(inputs, edits))[:, columns]
        (logits[:, 0] - logits[:, 1]).sum().backward()
    for p, flag in zip(parameters, flags, strict=True):
        p.grad = None
        p.requires_grad_(flag)
    return {name: inputs.answers.of(latents.grad) for name, latents in seen.items() if latents.grad is not None}


def edges_in_loop(backend: AnalysisBackend, inputs: ModelInputs, models: Sequence[Any], most: int) -> Callable[[], Any]:
    """One backward for each downstream latent, over whole sequences; returns the work for ``most`` of them."""
    lower, upper = models
    seen: dict[str, Tensor] = {}

    def leaf(latents: Tensor) -> Tensor:
        seen["lower"] = latents.detach().requires_grad_()
        return seen["lower"]

    def keep(latents: Tensor) -> Tensor:
        seen["upper"] = latents
        return latents

    def work() -> list[Tensor]:
        with torch.enable_grad():
            edits, _ = backend.splice_edits(
                inputs, models, {activation_name(lower): leaf, activation_name(upper): keep}
            )
            backend.forward(inputs, edits, inputs.answers)
            at_answer = inputs.answers.of(seen["upper"])
            pairs = (at_answer > 0).nonzero()[:most].tolist()
            grads = [
                torch.autograd.grad(at_answer[example, latent], seen["lower"], retain_graph=True)[0]
                for example, latent in pairs
            ]
        return [inputs.answers.of(grad)[example] for grad, (example, _) in zip(grads, pairs, strict=True)]

    return work

"""Which of a decoder's hook points a backend offers, latent models there, and edits that rules make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.hook_names import MLP_IN, MLP_OUT, RESID_MID, RESID_POST, canonical_names, in_layer
from interpretune.errors import HookPointError
from interpretune.testing import reference
from interpretune.testing.reference import Hook, Hooks
from interpretune.testing.rule import RuleSkipped
from interpretune.testing.tiny_latents import RandomDictionary
from interpretune.testing.workbench import Bench

SEEDS = 100
"""Distance between the seeds of two benches."""

OFFERED, TURNED = "hook points offered", "logits turned at"
"""What rules note for each other."""

LOWER, UPPER = 0, 1
"""Layers of the latent models; one is above both."""


def names_of(bench: Bench) -> list[str]:
    """The canonical names of all hook points of the tiny model."""
    reference.kind_of(bench.reference)
    return [name for name, _ in canonical_names(reference.n_layers(bench.reference))]


def offered(bench: Bench) -> list[str]:
    """Those that the backend offers; it is asked once for all rules."""
    if OFFERED not in bench.notes:
        bench.notes[OFFERED] = [name for name in names_of(bench) if offers(bench.backend, name)]
    return list(bench.notes[OFFERED])


def offers(backend: Any, name: str) -> bool:
    """Whether a backend knows a hook point, by a canonical name or another."""
    try:
        backend.check_hook_points([name])
    except HookPointError:
        return False
    return True


def latents(bench: Bench) -> list[RandomDictionary]:
    """Latent models that every rule splices: autoencoders that skip special tokens or not, a cross-layer transcoder."""
    found = [
        dictionary(bench, in_layer(LOWER, RESID_POST), skips=True, seed=1),
        dictionary(bench, in_layer(UPPER, RESID_POST), seed=2, linear=False),
    ]
    if not all(offers(bench.backend, item.hook_point) for item in found):
        raise RuleSkipped("the backend does not offer the residual stream after its blocks")
    read, *writes = in_layer(UPPER, MLP_IN), in_layer(UPPER, MLP_OUT), in_layer(UPPER + 1, MLP_OUT)
    if all(offers(bench.backend, name) for name in (read, *writes)):
        found.append(dictionary(bench, read, output=writes, seed=3))
    middle = in_layer(UPPER + 1, RESID_MID)
    if offers(bench.backend, middle):
        found.append(dictionary(bench, middle, seed=4, skips=True))
    return found


def with_latents(bench: Bench) -> dict[str, Any]:
    """Settings of a session that has latent models: the adapter's own, where it loads some, or the kit's."""
    return {} if bench.module.latent_models else {"latent_models": latents(bench)}


def crosscoder(bench: Bench) -> RandomDictionary:
    """A latent model that reads and writes the residual stream after two blocks."""
    return dictionary(bench, [in_layer(LOWER, RESID_POST), in_layer(UPPER, RESID_POST)], seed=5)


def dictionary(bench: Bench, hook_point: str | Sequence[str], **options: Any) -> RandomDictionary:
    """A random dictionary at hook points of the residual stream's width, on the module's device."""
    seed = options.pop("seed", 0) + SEEDS * bench.seed
    return RandomDictionary(hook_point, bench.width, seed=seed, **options).to(bench.module.device)


def turned(activations: Tensor) -> Tensor:
    """Turn every second token's activations over; the first token stays as it is."""
    edited = activations.clone()
    edited[:, 1::2] = 0.5 * activations[:, 1::2].flip(-1) + 0.1
    return edited


def shrunk(activations: Tensor) -> Tensor:
    """Make activations smaller and move them, the first token's aside; this does not commute with ``turned``."""
    edited = activations.clone()
    edited[:, 1:] = 0.7 * activations[:, 1:] + torch.linspace(-0.3, 0.3, activations.shape[-1]).to(activations)
    return edited


def holding(held: dict[str, Tensor], name: str) -> Hook:
    """An edit that changes nothing and holds on to what it sees."""

    def hold(activations: Tensor) -> Tensor:
        held[name] = activations
        return activations

    return hold


def edited_logits(bench: Bench, cases: Sequence[Hooks], model: Any = None) -> Tensor:
    """Logits ``[case, 2, pos, vocab]`` of the plain model for the bench's even rows, with the edits of each case."""
    return reference.logits_of_each(bench.reference if model is None else model, bench.even_rows, cases)


def logits_turned_at(bench: Bench) -> Mapping[str, Tensor]:
    """Those with ``turned``, ``[2, pos, vocab]`` by hook point, computed once for all rules."""
    if TURNED not in bench.notes:
        names = offered(bench)
        with torch.no_grad():
            logits = edited_logits(bench, [[(name, turned)] for name in names])
        bench.notes[TURNED] = dict(zip(names, logits, strict=True))
    found: Mapping[str, Tensor] = bench.notes[TURNED]
    return found

"""What the conformance kit needs to know of core's own adapter: for ``interpretune doctor`` and for the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interpretune.activations.hook_names import MLP_IN, MLP_OUT, RESID_MID, RESID_POST, in_layer
from interpretune.testing.conformance import AdapterConformance
from interpretune.testing.reference_latents import ReferenceLatents
from interpretune.testing.tiny_latents import RandomDictionary

WIDTH, LATENTS = 32, 16
"""Of the residual stream of the kit's tiny models, and of the dictionaries."""


class CoreConformance(AdapterConformance):
    """Sessions of core alone with latent models of no library: autoencoders and a cross-layer skip transcoder."""

    adapter = "core"

    def reference_latents(self) -> Sequence[ReferenceLatents]:
        """Random weights at hook points of three blocks."""
        hook_points = [
            [in_layer(0, RESID_POST)] * 2,
            [in_layer(1, RESID_POST)] * 2,
            [in_layer(1, MLP_IN), in_layer(1, MLP_OUT), in_layer(2, MLP_OUT)],
            [in_layer(2, RESID_MID)] * 2,
        ]
        return [
            ReferenceLatents.random(
                read,
                WIDTH,
                LATENTS,
                seed=10 * self.seed + i,
                output_hook_points=writes,
                d_out=WIDTH * len(writes),
                skip_connection=len(writes) > 1,
            )
            for i, (read, *writes) in enumerate(hook_points)
        ]

    def module_settings(self) -> Mapping[str, Any]:
        """Dictionaries with these weights, of which the first skips special tokens."""
        return {"latent_models": [_dictionary(truth, skips=i == 0) for i, truth in enumerate(self.reference_latents())]}


def _dictionary(truth: ReferenceLatents, *, skips: bool) -> RandomDictionary:
    dictionary = RandomDictionary(
        truth.hook_point,
        WIDTH,
        LATENTS,
        output=truth.written_points,
        skips=skips,
        skip_connection=truth.has_skip_connection,
    )
    for name in ("w_enc", "b_enc", "w_dec", "b_dec", "w_skip"):
        if getattr(truth, name) is not None:
            setattr(dictionary, name, getattr(truth, name).clone())
    return dictionary

"""SAEs of every architecture are ablated exactly by replays, with and without error term and normalisation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    HookedSAETransformer,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    Transcoder,
    TranscoderConfig,
)
from torch import Tensor
from transformers import AutoTokenizer

from interpretune.analysis import AnalysisBackend, LatentRows, ablate, activation_name
from interpretune.latents import reconstruct
from interpretune.replay.gradients import attribute, gradient_edges
from interpretune_saelens.latent_model import SAELatentModel
from interpretune_tlens import ITLensFromPretrainedNoProcessingConfig, loading
from interpretune_tlens.backend import TransformerLensBackend
from interpretune_tlens.hooked.loading import quiet
from tests.replay.ablated_rows import ATOL, active_rows, error_of, rows_of, worst_error
from tests.tiny_architectures import WIDTH, backend_of, batch_of, dictionary, make_model

D_SAE = 24
INPUTS = batch_of((9, 4, 12), "left")
READS = {"core": "model.layers.1.mlp:in", "hooked": "blocks.1.ln2.hook_normalized"}
"""What the MLP reads, for transcoders."""

SAES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 6}),
    "rescaled topk": (TopKSAE, TopKSAEConfig, {"k": 6, "rescale_acts_by_decoder_norm": True}),
    "transcoder": (Transcoder, TranscoderConfig, {"d_out": WIDTH, "apply_b_dec_to_input": False}),
    "jumprelu transcoder": (
        JumpReLUTranscoder,
        JumpReLUTranscoderConfig,
        {"d_out": WIDTH, "apply_b_dec_to_input": False},
    ),
    "skip transcoder": (SkipTranscoder, SkipTranscoderConfig, {"d_out": WIDTH, "apply_b_dec_to_input": False}),
    "jumprelu skip transcoder": (
        JumpReLUSkipTranscoder,
        JumpReLUSkipTranscoderConfig,
        {"d_out": WIDTH, "apply_b_dec_to_input": False},
    ),
    "heads": (StandardSAE, StandardSAEConfig, {"reshape_activations": "hook_z"}),
    "layer_norm": (StandardSAE, StandardSAEConfig, {"normalize_activations": "layer_norm"}),
    "constant_norm_rescale": (JumpReLUSAE, JumpReLUSAEConfig, {"normalize_activations": "constant_norm_rescale"}),
}
DECODED = ("rescaled topk", "layer_norm", "constant_norm_rescale")
"""Their decoders are not linear as configured."""


def latent_model(kind: str, stack: str, *, error: bool = False) -> SAELatentModel:
    """All weights random, in float64."""
    sae_type, config, settings = SAES[kind]
    cfg = config(d_in=WIDTH, d_sae=D_SAE, dtype="float64", device="cpu", **settings)
    place = "blocks.1.attn.hook_z" if kind == "heads" else "blocks.1.hook_resid_post"
    cfg.metadata.hook_name = READS[stack] if "transcoder" in kind else place
    cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out" if "transcoder" in kind else None
    sae = sae_type(cfg)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) / 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # SAELens wants it at add_sae, which is not called here
        sae.use_error_term = error
    return SAELatentModel(sae)


@pytest.fixture(scope="module")
def backend(llama_folder: Path) -> Callable[[str], AnalysisBackend]:
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)

    @cache
    def make(stack: str) -> AnalysisBackend:
        if stack == "core":
            return backend_of(make_model("llama"))
        cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=False)
        return TransformerLensBackend(loading.convert(make_model("llama"), tokenizer, cfg, torch.device("cpu")).eval())

    return make


IN_TURN = [(kind, ("core", "hooked")[i % 2], i // 2 % 2 == 1) for i, kind in enumerate(SAES)]
IN_TURN += [("heads", "core", False), ("transcoder", "core", False)]
"""Each architecture in one of the backends, with or without its error term; in both what has other shapes or places."""


@pytest.mark.parametrize(("kind", "stack", "error"), IN_TURN)
def test_every_architecture_is_exact(backend: Any, stack: str, kind: str, error: bool) -> None:
    item, above = latent_model(kind, stack, error=error), dictionary("blocks.3.hook_resid_pre", 2)
    assert (item.decoder_rows(torch.tensor([0, 5])) is None) == (kind in DECODED)
    prefill = backend(stack).prefill(INPUTS, [item, above])
    assert worst_error(prefill) < ATOL
    name = activation_name(item)
    sets = rows_of([(point, {name: dict.fromkeys(range(0, D_SAE, 3), 0.4)}) for point in range(3)])
    assert error_of(prefill, sets, row_budget=2) < ATOL


@pytest.mark.parametrize("kind", ["skip transcoder", "jumprelu skip transcoder"])
def test_a_skip_connection_writes_what_saelens_writes(kind: str) -> None:
    item, draw = latent_model(kind, "core"), torch.Generator().manual_seed(3)
    read = torch.randn(2, 5, WIDTH, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(reconstruct(item, item.encode(read), read), item.sae(read))
        assert (item.sae(read) - item.sae.decode(item.encode(read))).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kind", "error"),
    [("standard", False), ("topk", True), ("layer_norm", True), ("layer_norm", False), ("constant_norm_rescale", True)],
)
def test_ablations_equal_those_by_saelens_itself(backend: Any, kind: str, error: bool) -> None:
    hooked = backend("hooked").model
    item = latent_model(kind, "hooked", error=error)
    with quiet(), torch.random.fork_rng():
        own = HookedSAETransformer(hooked.cfg, hooked.tokenizer, move_to_device=False)
        own.load_state_dict(hooked.state_dict())
    prefill = backend("hooked").prefill(INPUTS, [item])
    rows = active_rows(prefill, activation_name(item))

    def without(point: int, latent: int) -> Tensor:
        def zero(latents: Tensor, hook: Any) -> Tensor:
            latents[:, -1, latent] = 0
            return latents

        tokens = INPUTS.tokens[point][INPUTS.attention_mask[point].bool()].unsqueeze(0)
        sae = copy.deepcopy(item.sae)
        logits = own.run_with_hooks_with_saes(
            tokens, saes=[sae], fwd_hooks=[(f"{item.hook_point}.hook_sae_acts_post", zero)], prepend_bos=False
        )
        return logits[0, -1]

    pairs = list(zip(rows.points.tolist(), rows.changes[activation_name(item)].latents.tolist(), strict=True))[::3]
    with torch.no_grad():
        wanted = torch.stack([without(*pair) for pair in pairs])
    found = ablate(prefill, LatentRows.single(activation_name(item), torch.tensor(pairs)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)
    assert (wanted - prefill.logits[[point for point, _ in pairs]]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        *(("jumprelu", False), ("gated", True), ("heads", False)),
        *(("constant_norm_rescale", True), ("constant_norm_rescale", False)),
    ],
)
def test_gradients_and_edges_are_those_of_whole_forwards(backend: Any, kind: str, error: bool) -> None:
    item, above = latent_model(kind, "core", error=error), dictionary("blocks.3.hook_resid_pre", 2)
    names = [activation_name(item), activation_name(above)]
    prefill = backend("core").prefill(INPUTS, [item, above])
    found = attribute(prefill, lambda logits, _: logits[:, 5].sum(), names)
    _, wanted = backend("core").gradients(INPUTS, [item, above], lambda logits: logits[:, 5].sum(), names)
    for name in names:
        torch.testing.assert_close(found[name], prefill.points.of(wanted[name]), rtol=0, atol=ATOL)
        assert found[name].abs().max() > 1e-2
    for point, edge in enumerate(gradient_edges(prefill, *names)):
        position = prefill.points.positions[point]
        latent = int(edge.downstream[0])
        slopes = slope_of(prefill, names, point, latent)[point, position, edge.upstream]
        torch.testing.assert_close(
            edge.values[:, 0], prefill.latents[names[0]][point, edge.upstream] * slopes, rtol=0, atol=ATOL
        )


def slope_of(prefill: Any, names: list[str], point: int, latent: int) -> Tensor:
    """Gradient of one latent of the upper latent model in a whole forward, ``[batch, pos, d_sae]``."""
    seen: dict[str, Tensor] = {}

    def leaf(latents: Tensor) -> Tensor:
        seen["up"] = latents.detach().requires_grad_()
        return seen["up"]

    def look(latents: Tensor) -> Tensor:
        seen["down"] = latents
        return latents

    edits, _ = prefill.backend.splice_edits(
        prefill.inputs, list(prefill.latent_models.values()), dict(zip(names, (leaf, look), strict=True))
    )
    with torch.enable_grad():
        prefill.backend.forward(prefill.inputs, edits)
        chosen = seen["down"][point, prefill.points.positions[point], latent]
        return torch.autograd.grad(chosen, seen["up"])[0]

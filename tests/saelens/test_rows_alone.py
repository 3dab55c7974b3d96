"""What an SAE makes of a row does not depend on the rows beside it, for every architecture that SAELens trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from torch import Tensor

from interpretune.analysis import HuggingFaceBackend, LatentRows, ModelInputs, activation_name
from interpretune_saelens.latent_model import SAELatentModel
from tests.sessions import padded
from tests.tiny import tiny_gpt2

PLACE = "blocks.1.hook_resid_post"
OPTIONS: dict[str, dict[str, Any]] = {
    "topk": {"k": 4},
    "abstopk": {"k": 4},
    "batchtopk": {"k": 4, "topk_threshold_lr": 0.1},
    "matryoshka_batchtopk": {"k": 4, "topk_threshold_lr": 0.1, "matryoshka_widths": [8, 24, 48]},
    "jumprelu": {"l0_coefficient": 0.5, "jumprelu_bandwidth": 1.0},
    "matching_pursuit": {"max_iterations": 4, "decoder_init_norm": 1.0},
}


@pytest.fixture(scope="module")
def backend() -> HuggingFaceBackend:
    return HuggingFaceBackend(tiny_gpt2().double().eval())


@pytest.fixture(scope="module")
def inputs() -> ModelInputs:
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, 40, (length,), generator=draw) for length in (5, 9, 7, 12, 6, 8, 11, 10)]
    return ModelInputs.from_batch(padded(rows, "left", 0))


def trained(architecture: str, backend: HuggingFaceBackend, inputs: ModelInputs, steps: int = 30) -> SAELatentModel:
    """An SAE of an architecture in float64, trained for a moment on the rows."""
    torch.manual_seed(0)
    sae_class, config_class = get_sae_training_class(architecture)
    config = config_class(d_in=32, d_sae=48, dtype="float64", device="cpu", **OPTIONS.get(architecture, {}))
    config.metadata.hook_name = PLACE
    item = SAELatentModel(sae_class(config))
    sample = backend.capture(inputs, [PLACE])[PLACE][inputs.attention_mask.bool()]
    optimizer = torch.optim.Adam(item.parameters(), lr=1e-2)
    for step in range(steps):
        terms = item.training_loss(sample, sample, step)
        assert terms is not None
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    return item.requires_grad_(False).eval()


def logits_and_effects(
    backend: HuggingFaceBackend, item: SAELatentModel, inputs: ModelInputs, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """Spliced logits ``[n, vocab]``, and logits with each of some latents ablated in each row."""
    clean = backend.prefill(inputs, [item], self_check=False)
    pairs = torch.cartesian_prod(torch.arange(len(inputs)), latents)
    ablated = backend.ablate(clean, LatentRows.single(activation_name(item), pairs))
    torch.testing.assert_close(clean.logits, backend.run_spliced(inputs, [item]).answer_logits, rtol=0, atol=1e-9)
    return clean.logits, ablated.reshape(len(inputs), len(latents), -1)


@pytest.mark.parametrize("architecture", SAE_TRAINING_CLASS_REGISTRY)
def test_a_row_alone_gives_what_it_gives_among_others(
    architecture: str, backend: HuggingFaceBackend, inputs: ModelInputs
) -> None:
    item = trained(architecture, backend, inputs)
    at_answers = backend.prefill(inputs, [item], self_check=False).latents[activation_name(item)]
    latents = at_answers.amax(0).topk(5).indices
    assert (at_answers[:, latents] > 0).any()
    together = logits_and_effects(backend, item, inputs, latents)
    alone = [logits_and_effects(backend, item, inputs.select(torch.tensor([i])), latents) for i in range(len(inputs))]
    for found, wanted in zip(together, map(torch.cat, zip(*alone, strict=True)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert (together[1] - together[0].unsqueeze(1)).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescale", [False, True])
def test_the_threshold_form_is_the_one_that_is_saved(
    architecture: str,
    rescale: bool,
    backend: HuggingFaceBackend,
    inputs: ModelInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(OPTIONS, architecture, OPTIONS[architecture] | {"rescale_acts_by_decoder_norm": rescale})
    item = trained(architecture, backend, inputs)
    sample = backend.capture(inputs, [PLACE])[PLACE]
    item.save_to(tmp_path / "sae")
    saved = SAE.load_from_disk(tmp_path / "sae", device="cpu")
    latents = item.encode(sample)
    torch.testing.assert_close(latents, saved.encode(sample), rtol=0, atol=1e-9)
    torch.testing.assert_close(item.decode(latents), saved.decode(saved.encode(sample)), rtol=0, atol=1e-9)
    in_training = item.encode_in_training(sample)
    assert in_training is not None
    assert ((in_training > 0) != (latents > 0)).any()

"""The noise of effects: measured with the model at hand, kept with the results, and said in every report."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interpretune.analysis import (
    AnalysisBatch,
    AnalysisCache,
    AnalysisCfg,
    AnalysisMode,
    AnalysisRunner,
    ablate,
    activation_name,
    calculate_latent_metrics,
    create_attribution_tables,
    plot_latent_effects,
    run_analysis,
)
from interpretune.replay.effect_noise import is_measured, measure_noise
from interpretune.store.values import LatentValues
from tests.replay.ablated_rows import active_rows
from tests.sessions import STACKS, make_session
from tests.tiny_architectures import backend_of, batch_of, dictionary, make_model
from tests.tiny_latents import RandomDictionary

PLACES = ("blocks.1.hook_resid_post", "blocks.2.hook_mlp_out")


def difference(logits: Tensor) -> Tensor:
    return (logits[:, 10] - logits[:, 20]).double()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_the_noise_is_what_rounding_does_to_effects(kind: str, dtype: torch.dtype) -> None:
    """Against the same weights in float64, whose effects are as good as exact."""
    low = make_model(kind, dtype)
    models = [
        dictionary(place, i).to(dtype) for i, place in enumerate(("blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"))
    ]
    inputs, name = batch_of((9, 4, 12, 7, 11, 6), "left"), activation_name(models[0])
    found = []
    for model, latents in (
        (low, models),
        (copy.deepcopy(low).double(), [copy.deepcopy(item).double() for item in models]),
    ):
        prefill = backend_of(model).prefill(inputs, latents)
        if not found:
            rows, noise = active_rows(prefill, name), measure_noise(prefill, lambda logits, _: difference(logits))
        found.append(difference(prefill.logits[rows.points]) - difference(ablate(prefill, rows)))
    error = (found[0] - found[1]).square().mean().sqrt().item()
    assert error < noise < 8 * error
    state = torch.get_rng_state()
    measure_noise(prefill, lambda logits, _: difference(logits))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_noise_of_an_effect_is_that_of_two_runs() -> None:
    prefill = backend_of(make_model("llama")).prefill(batch_of((9, 4), "left"), [dictionary(PLACES[0], 0)])
    rounded_and_clean = iter((3.0, 1.0))
    noise = measure_noise(prefill, lambda _, examples: torch.full((len(examples),), next(rounded_and_clean)))
    assert noise == pytest.approx(2 * 2**0.5)


ABLATION, ATTRIBUTION = AnalysisMode.ablation, AnalysisMode.attr_patching


@pytest.mark.parametrize(
    ("stack", "mode"), [*zip(STACKS, (ABLATION, ATTRIBUTION, ABLATION), strict=False), ("core", ATTRIBUTION)]
)
def test_reports_say_the_noise_that_was_measured(tmp_path: Path, stack: str, mode: AnalysisMode) -> None:
    session = make_session(tmp_path, "llama", stack, latent_models=[RandomDictionary(PLACES[0], seed=1)])
    cache = run_analysis(**session, analysis_cfg=AnalysisCfg(mode=mode))
    measured = [float(item) for item in cache.effect_noise]
    assert 1e-8 < measured[0] < 1e-3
    assert set(measured[1:]) == {0.0}  # in 16 bits some later batches are measured, too
    metrics = calculate_latent_metrics(cache, run_name="ablation")
    assert metrics.effect_noise == max(measured)
    line = f"rounding alone changes an effect by about {max(measured):.2g} logits"
    assert all(line in table for table in create_attribution_tables(metrics).values())
    (figure,) = plot_latent_effects(cache, figure_dir=tmp_path)
    assert figure.layout.title.subtitle.text == line


def test_a_store_keeps_the_noise(tmp_path: Path) -> None:
    session = make_session(tmp_path, "llama", latent_models=[RandomDictionary(PLACES[0], seed=1)])
    (store,) = AnalysisRunner(**session, root=tmp_path / "stores").run({"ablation": AnalysisMode.ablation}).values()
    cache = AnalysisCache.of(store)
    assert [float(item) > 0 for item in cache.effect_noise] == [True, False, False]
    assert calculate_latent_metrics(cache).effect_noise == max(map(float, cache.effect_noise))


def test_noise_that_is_not_small_is_warned_of() -> None:
    effects = LatentValues(torch.tensor([3]), torch.tensor([[0.4], [-0.5]]), 8)
    active = LatentValues(effects.latents, effects.values.abs(), 8)
    labels = torch.tensor([0, 1])

    def cache(*noises: float) -> AnalysisCache:
        about = {"labels": labels, "orig_labels": labels, "activations": {"at": active}, "effects": {"at": effects}}
        return AnalysisCache(batches=[AnalysisBatch(effect_noise=noise, **about) for noise in noises])

    assert calculate_latent_metrics(cache(0.049)).effect_noise == pytest.approx(0.049)
    with pytest.warns(UserWarning, match=r"about 0.051 logits, and the largest is 0.5: effects are known only roughly"):
        assert calculate_latent_metrics(cache(0.051)).effect_noise == pytest.approx(0.051)
    assert calculate_latent_metrics(cache(0.0)).effect_noise is None
    assert calculate_latent_metrics(cache(0.01, 0.03, 0.02)).effect_noise == pytest.approx(0.03)


def test_the_noise_is_measured_ever_more_rarely() -> None:
    assert [i for i in range(40) if is_measured(i)] == [0, 1, 2, 4, 8, 16, 32]

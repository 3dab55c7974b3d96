"""SAEs trained on a session's own activations: what they are trained on, when, and what stays in the cache."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune import ConfigurationError, HookPointError, LatentModelError
from interpretune.analysis import AnalysisCfg, AnalysisMode, measure_latent_quality, report_sections, run_analysis
from interpretune_saelens import SAELensTrainConfig, training
from interpretune_tlens import ITLensFromPretrainedNoProcessingConfig
from tests.sessions import make_session, plain_model
from tests.tiny_latents import hooked, unspliced

PLACE, OTHER = "blocks.1.hook_resid_post", "blocks.2.attn.hook_z"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model and data; every test gets a copy with an empty cache of SAEs."""
    folder = tmp_path_factory.mktemp("training")
    make_session(folder, "gpt2")
    return folder


Make = Callable[..., it.ITSession]


@pytest.fixture
def make(prepared: Path, tmp_path: Path) -> Make:
    def make(*cfgs: SAELensTrainConfig, use_bridge: bool | None = None, **settings: Any) -> it.ITSession:
        """With a model of transformers, unless a test asks for one of TransformerLens."""
        adapters: tuple[str, ...] = ("huggingface", "sae_lens")
        if use_bridge is not None:
            adapters = ("sae_lens",)
            settings["tl_cfg"] = ITLensFromPretrainedNoProcessingConfig(use_bridge=use_bridge)
        for cfg in cfgs:
            cfg.cache_dir = tmp_path
        return make_session(prepared, "gpt2", adapters=adapters, sae_cfgs=list(cfgs), **settings)

    return make


def test_saes_are_trained_on_the_plain_model_too(prepared: Path, tmp_path: Path) -> None:
    cfg = recipe("layers.1.resid_post", cache_dir=tmp_path)
    session = make_session(prepared, "gpt2", adapters=("huggingface", "sae_lens"), sae_cfgs=[cfg])
    (item,) = session.module.latent_models
    assert session.context.names == ("core", "huggingface", "sae_lens")
    assert item.hook_point == "layers.1.resid_post"
    assert item.training_report["hook"] == "layers.1.resid_post"
    cache = run_analysis(session.module, session.datamodule, AnalysisCfg(mode=AnalysisMode.ablation))
    assert len(cache.logit_diffs) == 3


def recipe(hook: str = PLACE, **settings: Any) -> SAELensTrainConfig:
    return SAELensTrainConfig(hook_name=hook, **{"d_sae": 64, "training_steps": 60, "batch_size": 64, **settings})


def cached(folder: Path) -> list[Path]:
    """Folders in the cache, hidden ones included, locks left out."""
    return sorted(path for path in (folder / "saes").glob("*") if path.suffix != ".lock")


def weights_of(session: it.ITSession) -> list[Tensor]:
    return [item.sae.W_enc.detach().clone() for item in session.module.latent_models]


def test_init_twice_does_not_add_the_trained_ones_again(make: Make) -> None:
    session = make(recipe())
    it.it_init(**session)
    assert len(session.module.latent_models) == 1


def test_a_model_is_known_by_all_that_changes_what_it_computes(make: Make) -> None:
    session = make(recipe())
    before = training.activation_identity(**session, most=1000, seed=0)
    assert training.activation_identity(**session, most=1000, seed=0) == before
    assert before.unknown == ()
    weights = next(parameter for parameter in session.module.model.parameters() if parameter.ndim == 2)
    with torch.no_grad():
        weights.copy_(weights.flip(0))  # the same values in another order
    assert training.activation_identity(**session, most=1000, seed=0) != before


def test_rows_that_are_not_trained_on_train_no_sae_again(
    prepared: Path, tmp_path: Path, no_more_training: Callable[[], None]
) -> None:
    settings = {"adapters": ("huggingface", "sae_lens"), "sae_cfgs": [recipe(cache_dir=tmp_path, training_steps=2)]}
    first = make_session(prepared, "gpt2", n_rows=7, **settings)
    no_more_training()
    second = make_session(prepared, "gpt2", n_rows=3, **settings)
    assert len(second.datamodule.dataset["validation"]) == 3
    assert all(torch.equal(a, b) for a, b in zip(weights_of(first), weights_of(second), strict=True))


def test_a_second_session_loads_what_the_first_trained(
    make: Make, tmp_path: Path, no_more_training: Callable[[], None]
) -> None:
    first = make(recipe(), recipe(OTHER))
    assert len(cached(tmp_path)) == 2
    no_more_training()
    second = make(recipe(), recipe(OTHER))
    assert all(torch.equal(a, b) for a, b in zip(weights_of(first), weights_of(second), strict=True))
    for one, other in zip(first.module.latent_models, second.module.latent_models, strict=True):
        assert one.training_report == other.training_report
        assert one.skips_special_tokens
        assert other.skips_special_tokens
        assert not any(parameter.requires_grad for parameter in other.parameters())
    with pytest.raises(AssertionError, match="trained again"):
        make(recipe(seed=1))


def test_another_model_or_recipe_is_another_sae(make: Make, tmp_path: Path) -> None:
    make(recipe(training_steps=2))
    make(recipe(training_steps=2, lr=0.1))
    make(recipe(training_steps=2), hf_model=scaled_model())
    assert len(cached(tmp_path)) == 3
    assert len({path.name for path in cached(tmp_path)}) == 3


def scaled_model() -> Any:
    model = plain_model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
    return model


@pytest.mark.parametrize("use_bridge", [True, False])
def test_training_improves_the_fit_and_reports_it(make: Make, use_bridge: bool) -> None:
    short, long = (
        make(recipe(training_steps=steps), use_bridge=use_bridge).module.latent_models[0].training_report
        for steps in (1, 150)
    )
    assert long["hook"] == PLACE
    assert short["explained_variance"] < long["explained_variance"] <= 1
    assert long["explained_variance"] > 0.5
    assert 0 < long["l0"] < 64
    assert 0 <= long["dead_share"] < 1


def test_the_report_has_the_figures_of_the_saved_sae(make: Make) -> None:
    session = make(recipe(), use_bridge=True)
    (item,) = session.module.latent_models
    activations = training_activations(session)
    with torch.no_grad():
        latents = item.sae.encode(activations)
        residual = (activations - item.sae.decode(latents)).square().sum()
    explained = 1 - residual / (activations - activations.mean(0)).square().sum()
    report = item.training_report
    assert report["activations"] == len(activations)
    assert report["explained_variance"] == pytest.approx(explained.item(), abs=2e-4)
    assert report["l0"] == pytest.approx((latents > 0).sum(-1).float().mean().item(), abs=0.01)
    assert report["dead_share"] == pytest.approx(1 - (latents > 0).any(0).float().mean().item(), abs=1e-3)
    (quality,) = measure_latent_quality(
        session.module.backend, session.module.latent_models, session.datamodule.train_dataloader()
    )
    assert quality.explained_variance == pytest.approx(explained.item(), abs=1e-3)
    assert quality.tokens == len(activations)


def test_reports_tell_the_rule_of_training_from_what_is_spliced(make: Make) -> None:
    options = {"k": 6, "matryoshka_widths": [16, 64]}
    session = make(recipe(architecture="matryoshka_batchtopk", architecture_args=options))
    (item,) = session.module.latent_models
    report = item.training_report
    (measured,) = measure_latent_quality(
        session.module.backend, session.module.latent_models, session.datamodule.train_dataloader()
    )
    assert report["spliced_explained_variance"] == pytest.approx(measured.explained_variance, abs=1e-3)
    assert report["spliced_l0"] == pytest.approx(measured.l0, abs=0.01)
    assert report["l0"] == pytest.approx(6, abs=0.01)
    assert abs(report["spliced_l0"] - report["l0"]) > 0.05
    assert report["spliced_explained_variance"] != report["explained_variance"]


def training_activations(session: it.ITSession) -> Tensor:
    """Activations of every unpadded training row but for its first and special tokens, in no particular order."""
    tokenizer, model, kept = session.datamodule.tokenizer, plain_model("gpt2"), []
    for row in session.datamodule.dataset["train"]["input_ids"]:
        tokens = torch.tensor(row)
        wanted = ~unspliced(tokens, [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])

        def keep(x: Tensor, wanted: Tensor = wanted) -> Tensor:
            kept.append(x[0][wanted])
            return x

        with hooked(model, [(PLACE, keep)]), torch.no_grad():
            model(input_ids=tokens.unsqueeze(0))
    return torch.cat(kept)


def test_trained_on_real_tokens_only(make: Make) -> None:
    session = make(use_bridge=True)
    collected = training.collect_activations(session.module, session.datamodule, [PLACE, OTHER], 10**6, seed=0)
    wanted = training_activations(session)
    assert collected.values[OTHER].shape == collected.values[PLACE].shape == wanted.shape
    distances = torch.cdist(collected.values[PLACE], wanted, compute_mode="donot_use_mm_for_euclid_dist")
    assert distances.min(0).values.max() < 1e-3
    assert distances.min(1).values.max() < 1e-3
    assert int(collected.is_answer.sum()) == len(session.datamodule.dataset["train"])
    few = training.collect_activations(session.module, session.datamodule, [PLACE], 50, seed=0)
    assert len(few.values[PLACE]) == len(few.is_answer) == 50
    repeated = collected.repeated(PLACE, 3)
    assert len(repeated) == len(wanted) + 2 * int(collected.is_answer.sum())


def test_an_sae_does_not_depend_on_those_trained_beside_it(make: Make, tmp_path: Path) -> None:
    """The cache's key knows nothing of neighbours."""
    settings: dict[str, Any] = {"buffer_samples": 60, "training_steps": 5}
    alone = weights_of(make(recipe(**settings)))[0]
    shutil.rmtree(tmp_path / "saes")
    beside = weights_of(make(recipe(OTHER, buffer_samples=10**6, training_steps=5, seed=4), recipe(**settings)))[1]
    assert torch.equal(alone, beside)


def global_state() -> list[Any]:
    numpy_state = np.random.get_state()[1].tolist()
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy_state,
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    ]


@pytest.mark.parametrize("grad", [True, False])
def test_training_leaves_generators_and_grad_mode_and_model_alone(make: Make, grad: bool) -> None:
    session = make(recipe(training_steps=3), init=False)
    before = [parameter.clone() for parameter in session.module.model.parameters()]
    with torch.set_grad_enabled(grad):
        state = global_state()
        it.it_init(**session)
        assert global_state() == state
    assert all(torch.equal(a, b) for a, b in zip(before, session.module.model.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in session.module.model.parameters())


def test_training_is_reproducible_whatever_the_global_generator(make: Make, tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.append(weights_of(make(recipe(training_steps=5)))[0])
        shutil.rmtree(tmp_path / "saes")
    assert torch.equal(*found)


def test_a_damaged_cache_is_trained_again(make: Make, tmp_path: Path) -> None:
    """Cut short, or of the right size with a bit that is another."""
    wanted = weights_of(make(recipe(training_steps=5)))[0]
    (folder,) = cached(tmp_path)
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-100], whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]):
        weights.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"was damaged \(sae_weights.safetensors has .*it is made anew"):
            assert torch.equal(weights_of(make(recipe(training_steps=5)))[0], wanted)
        assert weights.read_bytes() == whole
    (folder / "training-report.json").unlink()
    with pytest.warns(UserWarning, match=r"was damaged \(training-report.json cannot be read"):
        session = make(recipe(training_steps=5))
    assert session.module.latent_models[0].training_report["hook"] == PLACE
    assert cached(tmp_path) == [folder]


def test_an_interrupted_training_leaves_nothing_behind(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = training.SAETrainer.step, []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(training.SAETrainer, "step", interrupted)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        make(recipe())
    assert cached(tmp_path) == []
    assert torch.is_grad_enabled()
    monkeypatch.undo()
    make(recipe(training_steps=2))
    assert len(cached(tmp_path)) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interruption_while_saving_leaves_nothing_behind(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.json, "dumps", interrupted_at(json.dumps, "explained_variance"))
    with pytest.raises(KeyboardInterrupt):
        make(recipe(training_steps=2))
    assert cached(tmp_path) == []


def interrupted_at(dumps: Callable[..., str], key: str) -> Callable[..., str]:
    """``json.dumps`` that is interrupted when it comes to an object with a key."""

    def run(value: Any, **options: Any) -> str:
        if isinstance(value, dict) and key in value:
            raise KeyboardInterrupt
        return dumps(value, **options)

    return run


def test_what_cannot_be_trained_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(HookPointError, match=r"no hook point 'blocks\.7\.hook_resid_post'"):
        make(recipe("blocks.7.hook_resid_post"))
    with pytest.raises(ConfigurationError, match=r"architecture 'unheard-of'; it has .*standard"):
        make(recipe(architecture="unheard-of"))
    assert cached(tmp_path) == []


def test_a_training_split_without_text_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make(recipe(), init=False)
    nothing: list[Any] = []
    monkeypatch.setattr(type(session.datamodule), "train_dataloader", lambda self: nothing)
    with pytest.raises(LatentModelError, match="gives no token to train SAEs on"):
        it.it_init(**session)


def test_trained_saes_are_reported(make: Make) -> None:
    session = make(recipe(training_steps=2))
    (section,) = report_sections(session.module)
    assert section.rows[0].keys() >= {"hook", "explained_variance", "l0", "dead_share"}

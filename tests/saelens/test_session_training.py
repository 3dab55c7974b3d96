"""SAEs trained as a session: as SAELens's own trainer does it, under core's loop and under Lightning's Trainer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUSAEConfig,
    JumpReLUTrainingSAEConfig,
    SAETrainer,
    StandardSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TranscoderConfig,
)
from sae_lens.config import SAETrainerConfig
from torch import Tensor, nn

import interpretune as it
from interpretune import LatentModelError, TrainingError
from interpretune.analysis import measure_latent_quality
from interpretune_saelens import SAELensCustomConfig, SAELensFromDiskConfig, SAELensTrainConfig
from tests.sessions import make_session, plain_model
from tests.tiny_latents import hooked, unspliced

LOWER, PLACE = "blocks.0.hook_mlp_out", "blocks.1.hook_resid_post"
ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-2}}
FAST = {**ADAM, "init_args": {"lr": 2e-2}}
QUIET = it.LoopConfig(progress=False)
FRAMEWORKS = ["core", "lightning"]


class Recorder(it.LatentTrainingModule):
    """Keeps the loss of every batch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def at(config: Any, hook: str = PLACE, **metadata: Any) -> Any:
    """A SAELens configuration with its hook point."""
    config.metadata.hook_name = hook
    for name, value in metadata.items():
        config.metadata[name] = value
    return config


SIZE: dict[str, Any] = {"d_in": 32, "d_sae": 48}
CONFIGS: dict[str, Callable[[], Any]] = {
    "standard": lambda: at(StandardTrainingSAEConfig(**SIZE, l1_coefficient=0.5, l1_warm_up_steps=10)),
    "topk": lambda: at(TopKTrainingSAEConfig(**SIZE, k=4)),
    "layer_norm": lambda: at(StandardTrainingSAEConfig(**SIZE, normalize_activations="layer_norm")),
    "batchtopk": lambda: at(BatchTopKTrainingSAEConfig(**SIZE, k=4)),
    "jumprelu": lambda: at(JumpReLUTrainingSAEConfig(**SIZE, l0_coefficient=0.5, jumprelu_bandwidth=1.0)),
    "inference": lambda: at(StandardSAEConfig(**SIZE)),
}

Make = Callable[..., it.ITSession]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all sessions: model and prepared data are made once."""
    return tmp_path_factory.mktemp("session-training")


@pytest.fixture
def make(folder: Path) -> Make:
    def make(
        *cfgs: Any, framework: str = "core", model: str = "huggingface", batch_size: int = 8, **settings: Any
    ) -> it.ITSession:
        if framework == "lightning":
            pytest.importorskip("interpretune_lightning")
        defaults = {"module_cls": Recorder, "train_latent_models": True, "optimizer_init": ADAM, "init": False}
        sae_cfgs = [SAELensCustomConfig(cfg=cfg) if hasattr(cfg, "metadata") else cfg for cfg in cfgs]
        adapters = (framework, model, "sae_lens")
        session = make_session(folder, adapters=adapters, sae_cfgs=sae_cfgs, **{**defaults, **settings})
        session.datamodule.itdm_cfg.train_batch_size = batch_size
        return session

    return make


def steps(count: int, **settings: Any) -> it.LoopConfig:
    return it.LoopConfig(max_epochs=-1, max_steps=count, seed=1, progress=False, **settings)


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: item.detach().clone() for name, item in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, item in module.named_parameters() if not torch.equal(item, before[name])}


def activations_of(session: it.ITSession, hook: str = PLACE, *, skips: bool = False) -> Tensor:
    """Activations at a hook point over the training rows, ``[n, 32]``: torch's hooks, one unpadded row at a time."""
    model, found, special = plain_model("gpt2"), [], session.datamodule.tokenizer.all_special_ids
    for row in session.datamodule.dataset["train"]["input_ids"]:
        tokens = torch.tensor(row)
        kept = ~unspliced(tokens, special) if skips else torch.ones(len(tokens), dtype=torch.bool)

        def keep(activations: Tensor, kept: Tensor = kept) -> Tensor:
            found.append(activations[0, kept].detach())
            return activations

        with torch.no_grad(), hooked(model, [(hook, keep)]):
            model(input_ids=tokens.unsqueeze(0))
    return torch.cat(found)


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    ("kind", "frameworks"),
    [(kind, FRAMEWORKS if kind in ("batchtopk", "layer_norm") else ["core"]) for kind in CONFIGS],
    ids=str,
)
def test_an_sae_trains_alike_in_both_loops_and_the_model_stays(make: Make, kind: str, frameworks: list[str]) -> None:
    """In Lightning's loop one that has buffers, and one that has none: which kind it is the loops do not see."""
    curves = {}
    for framework in frameworks:
        session = make(CONFIGS[kind](), framework=framework, optimizer_init=FAST)
        module = session.module
        base, latents = copies(module.model), copies(module.latent_modules)
        before = it.validate(**session, loop_cfg=QUIET).metrics
        result = it.fit(**session, loop_cfg=steps(30, check_val_every_n_epoch=10))
        assert changed(module.model, base) == set()
        assert changed(module.latent_modules, latents) == latents.keys()
        after = result.metrics[f"val_explained_variance/{PLACE}"]
        assert after > max(0.35, before[f"val_explained_variance/{PLACE}"] + 0.2)
        assert module.losses[-1] < module.losses[0] / 2
        curves[framework] = [*module.losses, after, result.metrics[f"val_l0/{PLACE}"]]
    for curve in curves.values():
        assert curve == pytest.approx(curves["core"], abs=1e-4, rel=1e-5)


def test_validation_tells_the_rule_of_training_from_what_is_spliced(make: Make) -> None:
    session = make(CONFIGS["batchtopk"](), at(CONFIGS["standard"](), LOWER))
    it.fit(**session, loop_cfg=steps(20, limit_val_batches=0))
    found = it.validate(**session, loop_cfg=QUIET).metrics
    measured, _ = measure_latent_quality(
        session.module.backend, session.module.latent_models, session.datamodule.val_dataloader()
    )
    assert found[f"val_spliced_explained_variance/{PLACE}"] == pytest.approx(measured.explained_variance, abs=1e-5)
    assert found[f"val_spliced_l0/{PLACE}"] == pytest.approx(measured.l0, abs=1e-5)
    assert found[f"val_l0/{PLACE}"] == pytest.approx(4, abs=0.01)
    assert abs(measured.l0 - 4) > 0.5
    assert not any(name.startswith("val_spliced") and name.endswith(LOWER) for name in found)


@pytest.mark.parametrize("kind", ["standard", "topk", "batchtopk", "jumprelu"])
def test_a_training_sae_trains_as_with_saelens_trainer(make: Make, kind: str) -> None:
    """Steps, warm-up of coefficients and revival of dead latents; all rows in one batch, and SAELens clips to 1."""
    cfg = SAELensCustomConfig(cfg=CONFIGS[kind](), seed=3, dead_feature_window=4, skips_special_tokens=True)
    session = make(cfg, batch_size=24)
    (latent_model,) = session.module.latent_models
    assert isinstance(latent_model.sae, TrainingSAE)
    own = TrainingSAE.from_dict(latent_model.sae.cfg.to_dict())
    own.load_state_dict(latent_model.sae.state_dict())
    it.fit(**session, loop_cfg=steps(15, gradient_clip_val=1.0, limit_val_batches=0))

    sample = activations_of(session, skips=True)
    options = SAETrainerConfig(15 * len(sample), len(sample), lr=1e-2, lr_end=1e-2, dead_feature_window=4)
    trainer = SAETrainer(options, own, itertools.repeat(sample))
    losses = []
    for _ in range(15):
        losses.append(trainer.step(sample).loss.item())
        trainer.n_training_steps += 1
    assert session.module.losses == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(latent_model.steps_since_active.float(), trainer.n_forward_passes_since_fired)
    if kind == "topk":
        assert trainer.dead_neurons.any()  # else nothing would be revived


def test_lightnings_own_trainer_trains_a_session(make: Make) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    sessions = [make(CONFIGS["topk"](), framework="lightning", batch_size=24) for _ in range(2)]
    it.fit(**sessions[0], loop_cfg=steps(10))
    lightning.Trainer(
        max_steps=10, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    ).fit(**sessions[1])
    assert sessions[1].module.losses == pytest.approx(sessions[0].module.losses, abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_transcoder_and_an_sae_are_trained_at_once(make: Make, framework: str) -> None:
    options = {**SIZE, "d_out": 32, "apply_b_dec_to_input": False}
    transcoder = at(TranscoderConfig(**options), "blocks.1.hook_resid_pre", hook_name_out="blocks.1.hook_mlp_out")
    options = {"framework": framework, "model": "transformer_lens", "batch_size": 24, "optimizer_init": FAST}
    session = make(transcoder, CONFIGS["standard"](), **options)
    latents = copies(session.module.latent_modules)
    wanted = [copies(item.sae) for item in session.module.latent_models]
    result = it.fit(**session, loop_cfg=steps(30, check_val_every_n_epoch=30))
    assert changed(session.module.latent_modules, latents) == latents.keys()
    for place in ("blocks.1.hook_resid_pre", PLACE):
        assert result.metrics[f"val_explained_variance/{place}"] > 0.3

    inputs, outputs = (activations_of(session, f"blocks.1.{name}") for name in ("hook_resid_pre", "hook_mlp_out"))
    w = wanted[0]
    active = torch.relu(inputs @ w["W_enc"] + w["b_enc"])
    first = ((outputs - active @ w["W_dec"] - w["b_dec"]) ** 2).sum(-1).mean() + (
        active @ w["W_dec"].norm(dim=1)
    ).mean()
    w, inputs = wanted[1], activations_of(session)
    active = torch.relu((inputs - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    second = ((inputs - active @ w["W_dec"] - w["b_dec"]) ** 2).sum(-1).mean()  # the penalty is warmed up from 0
    assert session.module.losses[0] == pytest.approx((first + second).item(), rel=1e-4)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_training_that_is_resumed_goes_on_with_the_sae(make: Make, tmp_path: Path, framework: str) -> None:
    """The threshold of a batch top-k SAE and the counts of inactive steps are buffers, not parameters."""

    def session(seed: int = 0) -> it.ITSession:
        cfg = SAELensCustomConfig(cfg=CONFIGS["batchtopk"](), seed=seed, dead_feature_window=2)
        return make(cfg, framework=framework, batch_size=24)

    straight, stopped, resumed = session(), session(), session(seed=7)
    it.fit(**straight, loop_cfg=steps(8))
    it.fit(**stopped, loop_cfg=steps(5, run_dir=tmp_path / "run"))
    it.fit(**resumed, loop_cfg=steps(8, run_dir=tmp_path / "run", resume_from="last"))
    assert resumed.module.losses == pytest.approx(straight.module.losses[5:], rel=1e-5)
    wanted = straight.module.latent_modules.state_dict()
    assert wanted["0.steps_since_active"].any()
    assert wanted["0.sae.topk_threshold"] > 0
    for name, item in resumed.module.latent_modules.state_dict().items():
        torch.testing.assert_close(item, wanted[name], rtol=1e-4, atol=1e-5)


def test_an_sae_that_was_trained_in_setup_is_trained_further(make: Make, tmp_path: Path) -> None:
    cfg = SAELensTrainConfig(
        hook_name=PLACE, d_sae=48, training_steps=20, batch_size=64, architecture="topk",
        architecture_args={"k": 4}, cache_dir=tmp_path,
    )  # fmt: skip
    session = make(cfg)
    it.it_init(**session)
    latents = copies(session.module.latent_modules)
    it.fit(**session, loop_cfg=steps(3))
    assert changed(session.module.latent_modules, latents) == latents.keys()


# -------------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize(
    ("kind", "skips"),
    [("standard", False), ("standard", True), ("topk", True), ("layer_norm", False), ("jumprelu", True),
     ("inference", False)],
)  # fmt: skip
def test_a_saved_sae_has_the_same_latents_and_can_be_trained_on(
    make: Make, tmp_path: Path, kind: str, skips: bool
) -> None:
    cfg = at(CONFIGS[kind](), exclude_special_tokens=True)  # what the session was told goes before what metadata say
    session = make(SAELensCustomConfig(cfg=cfg, skips_special_tokens=skips))
    it.fit(**session, loop_cfg=steps(5, limit_val_batches=0))
    (saved,) = session.module.save_latent_models(tmp_path / "saes")
    assert saved == tmp_path / "saes" / PLACE
    again = make(SAELensFromDiskConfig(path=saved))
    (trained,), (loaded,) = session.module.latent_models, again.module.latent_models
    assert not isinstance(loaded.sae, TrainingSAE)
    assert loaded.skips_special_tokens is skips
    sample = activations_of(session).unsqueeze(0)
    with torch.no_grad():
        latents = [item.encode(sample) for item in (trained, loaded)]
        outputs = [item.decode(found) for item, found in zip((trained, loaded), latents, strict=True)]
    assert (latents[0] > 0).any()
    torch.testing.assert_close(latents[0] > 0, latents[1] > 0)
    if kind != "topk":  # SAELens moves the norms of the decoder into the latents
        torch.testing.assert_close(*latents)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    with pytest.raises(LatentModelError, match=r"hook_resid_post \(48\)' is not saved: .* exists.*another folder"):
        session.module.save_latent_models(tmp_path / "saes")
    if kind != "jumprelu":
        before = copies(loaded)
        it.fit(**again, loop_cfg=steps(2, limit_val_batches=0))
        assert changed(loaded, before) == before.keys()


# ------------------------------------------------------------------------------------------------ classes and refusals


def test_the_class_follows_the_configuration(make: Make) -> None:
    """A dictionary with an option that only training has would else lose it without a word."""

    def made(cfg: Any) -> Any:
        return make(SAELensCustomConfig(cfg=cfg)).module.latent_models[0].sae

    plain = {"architecture": "standard", **SIZE, "metadata": {"hook_name": PLACE}}
    assert not isinstance(made(plain), TrainingSAE)
    trained = made({**plain, "l1_coefficient": 0.25})
    assert isinstance(trained, TrainingSAE)
    assert trained.cfg.l1_coefficient == 0.25
    assert isinstance(made({**plain, "architecture": "batchtopk", "k": 3}), TrainingSAE)
    assert torch.equal(made(CONFIGS["topk"]()).W_enc, made(CONFIGS["topk"]().to_dict()).W_enc)


@pytest.mark.parametrize("how", ["expected_average_only_in", "covariance_whitening"])
def test_normalisations_that_only_saelens_trainer_makes_are_refused(make: Make, how: Any) -> None:
    cfg = at(StandardTrainingSAEConfig(**SIZE, normalize_activations=how))
    with pytest.raises(
        LatentModelError, match=rf"hook_resid_post has normalize_activations='{how}'.*SAELensTrainConfig"
    ):
        make(cfg)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_optimizer_that_forgets_the_saes_is_refused(make: Make, framework: str) -> None:
    class Forgets(Recorder):
        def configure_optimizers(self):
            return torch.optim.Adam([nn.Parameter(torch.zeros(1)), self.latent_modules[0].sae.W_enc])

    with pytest.raises(TrainingError, match=r"marked trainable and are in no optimizer: latent_modules\.0\.sae\.\w+, "):
        it.fit(**make(CONFIGS["standard"](), framework=framework, module_cls=Forgets), loop_cfg=QUIET)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_thresholds_of_inference_saes_are_named_and_may_be_frozen(make: Make, framework: str) -> None:
    session = make(at(JumpReLUSAEConfig(**SIZE)), framework=framework)
    with pytest.raises(TrainingError, match=r"does not depend on sae\.threshold, marked trainable"):
        it.fit(**session, loop_cfg=QUIET)
    (latent_model,) = session.module.latent_models
    latent_model.get_parameter("sae.threshold").requires_grad_(False)
    before = copies(latent_model)
    it.fit(**session, loop_cfg=QUIET)
    assert changed(latent_model, before) == before.keys() - {"sae.threshold"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_session_without_saes_is_told_so(make: Make, framework: str) -> None:
    with pytest.raises(it.ConfigurationError, match="train_latent_models=True, and the session has no latent models"):
        it.fit(**make(framework=framework), loop_cfg=QUIET)

"""Latent models as what is trained: against plain torch on single unpadded rows, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model
from torch import Tensor, nn

import interpretune as it
from interpretune.analysis import measure_latent_quality
from tests.sessions import make_session, plain_model
from tests.tiny_latents import FixedDictionary, RandomDictionary, hooked, unspliced

LOWER, PLACE = "blocks.0.hook_mlp_out", "blocks.1.hook_resid_post"
ADAM = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-2}}
QUIET = it.LoopConfig(progress=False)

Make = Callable[..., it.ITSession]


class Recorder(it.LatentTrainingModule):
    """Keeps the loss of every batch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all sessions: model and prepared data are made once."""
    return tmp_path_factory.mktemp("latent-training")


@pytest.fixture
def make(folder: Path) -> Make:
    def make(*latent_models: Any, batch_size: int = 8, **settings: Any) -> it.ITSession:
        defaults = {"module_cls": Recorder, "train_latent_models": True, "optimizer_init": ADAM, "init": False}
        session = make_session(folder, latent_models=latent_models, **{**defaults, **settings})
        session.datamodule.itdm_cfg.train_batch_size = batch_size
        return session

    return make


def steps(count: int, **settings: Any) -> it.LoopConfig:
    return it.LoopConfig(max_epochs=-1, max_steps=count, seed=1, progress=False, **settings)


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: item.detach().clone() for name, item in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, item in module.named_parameters() if not torch.equal(item, before[name])}


def seen_by(session: it.ITSession, item: Any, split: str = "train") -> tuple[Tensor, Tensor]:
    """Inputs and targets of a latent model, ``[n, 32]`` each: one unpadded row at a time, with torch's hooks."""
    model, found = plain_model("gpt2"), {item.hook_point: [], item.output_hook_point: []}
    special = session.datamodule.tokenizer.all_special_ids
    for row in session.datamodule.dataset[split]["input_ids"]:
        tokens = torch.tensor(row)
        kept = ~unspliced(tokens, special) if item.skips_special_tokens else torch.ones(len(tokens), dtype=torch.bool)

        def keep(name: str, kept: Tensor) -> Callable[[Tensor], Tensor]:
            def store(activations: Tensor) -> Tensor:
                found[name].append(activations[0, kept].detach())
                return activations

            return store

        with torch.no_grad(), hooked(model, [(name, keep(name, kept)) for name in found]):
            model(input_ids=tokens.unsqueeze(0))
    return torch.cat(found[item.hook_point]), torch.cat(found[item.output_hook_point])


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    "options", [{}, {"skips": True}, {"output": "blocks.2.hook_mlp_out"}], ids=["all", "skips", "transcoder"]
)
def test_a_dictionary_trains_as_in_plain_torch(make: Make, options: dict[str, Any]) -> None:
    """All rows in one batch, so that the order of the rows does not matter."""
    session = make(RandomDictionary(PLACE, **options), batch_size=24)
    module = session.module
    base, latents = copies(module.model), copies(module.latent_modules)
    before = it.validate(**session, loop_cfg=QUIET).metrics[f"val_explained_variance/{PLACE}"]
    result = it.fit(**session, loop_cfg=steps(30))
    assert changed(module.model, base) == set()
    assert changed(module.latent_modules, latents) == latents.keys()
    assert result.metrics[f"val_explained_variance/{PLACE}"] > before + 0.5

    reference = RandomDictionary(PLACE, **options)
    inputs, targets = seen_by(session, reference)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        active = reference.encode(inputs)
        residual = targets - reference.decode(active)
        loss = (residual**2).sum() / len(inputs) + active.sum() / len(inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert module.losses == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0] / 2
    assert result.metrics["train_loss"] == pytest.approx(losses[-1], rel=1e-4)


def test_two_are_trained_at_once_as_each_would_be_alone(make: Make) -> None:
    def trained(*places: str) -> tuple[list[float], list[Any]]:
        session = make(
            *[RandomDictionary(place, seed=seed) for seed, place in enumerate((LOWER, PLACE)) if place in places]
        )
        it.fit(**session, loop_cfg=steps(5))
        return session.module.losses, [item.w_enc for item in session.module.latent_models]

    both, (lower, upper) = trained(LOWER, PLACE)
    (one, (lower_alone,)), (other, (upper_alone,)) = trained(LOWER), trained(PLACE)
    assert both == pytest.approx([a + b for a, b in zip(one, other, strict=True)], rel=1e-5)
    torch.testing.assert_close(lower, lower_alone)
    torch.testing.assert_close(upper, upper_alone)


def test_one_that_the_user_froze_stays(make: Make) -> None:
    session = make(RandomDictionary(LOWER), RandomDictionary(PLACE))
    lower, upper = session.module.latent_models
    lower.requires_grad_(False)
    before = copies(lower)
    it.fit(**session, loop_cfg=steps(2))
    assert changed(lower, before) == set()
    assert changed(upper, copies(RandomDictionary(PLACE))) == copies(upper).keys()
    assert f"train_mse/{LOWER}" not in session.module.logged_metrics


def test_logged_quality_is_that_of_the_whole_split(make: Make) -> None:
    session = make(RandomDictionary(LOWER, skips=True), RandomDictionary(PLACE), init=True)
    for loop, split in ((it.validate, "val"), (it.test, "test")):
        for _ in range(2):  # a second epoch begins anew
            metrics = loop(**session, loop_cfg=QUIET).metrics
        wanted = measure_latent_quality(
            session.module.backend, session.module.latent_models, session.datamodule.val_dataloader()
        )
        for place, quality in zip((LOWER, PLACE), wanted, strict=True):
            found = (metrics[f"{split}_explained_variance/{place}"], metrics[f"{split}_l0/{place}"])
            assert found == pytest.approx((quality.explained_variance, quality.l0), abs=1e-6)


@pytest.mark.parametrize("where", ["class", "configuration"])
def test_the_sparsity_penalty_is_configured(make: Make, where: str) -> None:
    class Sparse(Recorder):
        l1_coefficient = 7.0

    mixin = it.AutoCompConfig(module_cfg_mixin=it.LatentTrainingConfig)
    settings = {"auto_comp_cfg": mixin, "l1_coefficient": 7.0} if where == "configuration" else {"module_cls": Sparse}
    session = make(RandomDictionary(PLACE), batch_size=24, **settings)
    it.fit(**session, loop_cfg=steps(1))
    inputs, _ = seen_by(session, RandomDictionary(PLACE))
    wanted = 7 * RandomDictionary(PLACE).encode(inputs).sum(-1).mean().item()
    assert session.module.logged_metrics[f"train_l1/{PLACE}"] == pytest.approx(wanted, rel=1e-5)


def test_a_decoder_that_tells_its_norms_weights_the_penalty(make: Make) -> None:
    class Normed(RandomDictionary):
        def decoder_norms(self) -> Tensor:
            return self.w_dec.norm(dim=-1)

    session = make(Normed(PLACE), batch_size=24)
    it.fit(**session, loop_cfg=steps(1))
    plain = RandomDictionary(PLACE)
    inputs, _ = seen_by(session, plain)
    wanted = (plain.encode(inputs) @ plain.w_dec.norm(dim=-1)).mean().item()
    assert session.module.logged_metrics[f"train_l1/{PLACE}"] == pytest.approx(wanted, rel=1e-5)


def test_a_loss_of_its_own_goes_before(make: Make) -> None:
    class Own(RandomDictionary):
        def training_loss(self, activations: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
            assert activations.ndim == targets.ndim == 2
            assert not activations.requires_grad
            assert torch.equal(activations, targets)
            weights = sum((item**2).sum() for item in self.parameters())
            return {"weights": weights, "step": torch.tensor(float(step))}

    session = make(Own(PLACE))
    for _ in range(2):  # a second training of the same session counts from 0 again
        session.module.losses = []
        weights = sum((item**2).sum() for item in session.module.latent_models[0].parameters()).item()
        it.fit(**session, loop_cfg=steps(3))
        assert session.module.losses[0] == pytest.approx(weights)
        assert session.module.logged_metrics[f"train_step/{PLACE}"] == 2


def test_a_training_that_is_resumed_ends_as_one_that_was_not_stopped(make: Make, tmp_path: Path) -> None:
    straight, stopped = make(RandomDictionary(PLACE)), make(RandomDictionary(PLACE))
    it.fit(**straight, loop_cfg=steps(6))
    it.fit(**stopped, loop_cfg=steps(4, run_dir=tmp_path / "run"))
    resumed = make(RandomDictionary(PLACE, seed=5))
    it.fit(**resumed, loop_cfg=steps(6, run_dir=tmp_path / "run", resume_from="last"))
    assert resumed.module.losses == straight.module.losses[4:]
    for name, item in straight.module.latent_modules.named_parameters():
        assert torch.equal(resumed.module.latent_modules.get_parameter(name), item)


# -------------------------------------------------------------------------------------------------------------- saving


class Tied(RandomDictionary):
    """Decodes with what it encodes with."""

    def __init__(self, hook_point: str, seed: int = 0) -> None:
        super().__init__(hook_point, d_sae=32, seed=seed)
        self.w_dec = self.w_enc


def test_saved_dictionaries_can_be_loaded(make: Make, tmp_path: Path) -> None:
    session = make(RandomDictionary("transformer.h.1:out", skips=True), Tied(LOWER))
    saved = session.module.save_latent_models(tmp_path / "saved")
    assert saved == [tmp_path / "saved" / "transformer.h.1_out", tmp_path / "saved" / LOWER]
    for place, item, fresh in zip(
        saved, session.module.latent_models, (RandomDictionary(PLACE, seed=3), Tied(LOWER, seed=3)), strict=True
    ):
        load_model(fresh, place / "weights.safetensors")
        assert changed(fresh, copies(item)) == set()
    about = json.loads((saved[0] / "latent_model.json").read_text())
    assert about["hook_point"] == "transformer.h.1:out"
    assert about["skips_special_tokens"] is True


def test_nothing_is_overwritten_and_nothing_half_written(make: Make, tmp_path: Path) -> None:
    module = make(RandomDictionary(LOWER), RandomDictionary(PLACE)).module
    (tmp_path / PLACE).mkdir()
    with pytest.raises(it.LatentModelError, match=r"'random at blocks\.1.*exists.*Choose another folder"):
        module.save_latent_models(tmp_path)
    assert not (tmp_path / LOWER).exists()

    class Failing(RandomDictionary):
        def save_to(self, folder: Path) -> None:
            (folder / "half").touch()
            raise OSError("the disk is full")

    module = make(Failing(LOWER)).module
    with pytest.raises(OSError, match="the disk is full"):
        module.save_latent_models(tmp_path)
    assert not (tmp_path / LOWER).exists()
    module = make(FixedDictionary(LOWER), train_latent_models=False, optimizer_init=None).module
    with pytest.raises(it.LatentModelError, match=r"'identity at .*' is a FixedDictionary, neither"):
        module.save_latent_models(tmp_path)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("freeze", [None, False])
def test_without_latent_models_there_is_nothing_to_train(make: Make, freeze: bool | None) -> None:
    """With ``freeze=False`` the optimizer would not even be empty: it would hold the model."""
    with pytest.raises(it.ConfigurationError, match=r"train_latent_models=True, and the session has no latent models"):
        it.it_init(**make(freeze=freeze))


def test_dictionaries_without_parameters_are_named(make: Make) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.__dict__.update(vars(FixedDictionary(LOWER)) | {"name": "constant"})

        encode, decode, dashboard_url = FixedDictionary.encode, FixedDictionary.decode, FixedDictionary.dashboard_url

    mixed = (RandomDictionary("blocks.2.hook_resid_post"), FixedDictionary(PLACE), Constant())
    wanted = r"no torch parameters to train: 'identity at blocks\.1\.hook_resid_post', 'constant'"
    with pytest.raises(it.ConfigurationError, match=wanted):
        it.it_init(**make(*mixed))

    class Own(Recorder):
        def configure_optimizers(self):
            return torch.optim.Adam(self.latent_modules.parameters())

    with pytest.raises(it.ConfigurationError, match=wanted):
        it.fit(**make(*mixed, module_cls=Own, optimizer_init=None), loop_cfg=QUIET)


def test_latent_models_that_are_not_to_be_trained_are_not_trained_by_chance(make: Make) -> None:
    session = make(RandomDictionary(PLACE), train_latent_models=False)  # the optimizer gets the model
    with pytest.raises(it.TrainingError, match=r"none of this session's 1 has a trainable parameter.*=True"):
        it.fit(**session, loop_cfg=QUIET)


def test_an_optimizer_that_forgets_the_latent_models_is_refused(make: Make) -> None:
    class Forgets(Recorder):
        def configure_optimizers(self):
            return torch.optim.Adam([self.latent_modules[0].w_enc])

    with pytest.raises(it.TrainingError, match=r"3 parameters .*in no optimizer: latent_modules\.0\.b_enc, "):
        it.fit(**make(RandomDictionary(PLACE), module_cls=Forgets), loop_cfg=QUIET)


def test_a_parameter_that_the_loss_leaves_out_is_refused(make: Make) -> None:
    """An optimizer that holds it would leave it as it is, without a word."""

    class Gated(RandomDictionary):
        def __init__(self) -> None:
            super().__init__(PLACE)
            self.threshold = nn.Parameter(torch.zeros(self.d_sae))

        def encode(self, activations: Tensor) -> Tensor:
            found = super().encode(activations)
            return found * (found > self.threshold)

    session = make(Gated())
    with pytest.raises(
        it.TrainingError, match=r"'random at .*' does not depend on threshold, marked trainable"
    ) as error:
        it.fit(**session, loop_cfg=QUIET)
    (latent_model,) = session.module.latent_models
    remedy = str(error.value).split("with ")[1].split(", or")[0]
    eval(remedy, {"latent_model": latent_model})
    before = copies(latent_model)
    it.fit(**session, loop_cfg=QUIET)
    assert changed(latent_model, before) == before.keys() - {"threshold"}

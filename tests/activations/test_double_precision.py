"""What a model in float64 gives is not rounded to float32 on its way into sums, means and losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import interpretune as it
from interpretune.analysis import ModelInputs, activation_name, integrated_gradients, measure_latent_quality
from interpretune.session.evaluate_metrics import Accuracy
from interpretune.training.latent_training import LatentSample
from interpretune.training.metric_log import MetricLog
from tests.sessions import make_session, unpadded_rows
from tests.tiny_architectures import backend_of, batch_of, dictionary, make_model

EXACT = {"rtol": 0, "atol": 1e-12}
QUIET = it.LoopConfig(progress=False)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> it.ITSession:
    """A classifier in float64, batches of 3, 3 and 1 rows."""
    double = it.HFFromPretrainedConfig(pretrained_kwargs={"dtype": "float64"})
    folder = tmp_path_factory.mktemp("double")
    return make_session(folder, "gpt2", module_cls=it.ClassificationModule, hf_from_pretrained_cfg=double)


def logits_of_rows(session: it.ITSession) -> list[Tensor]:
    with torch.no_grad():
        return [session.module.model(input_ids=row.unsqueeze(0)).logits[0] for row, _ in unpadded_rows(session)]


def test_losses_and_accuracies_of_a_test_stay_float64(session: it.ITSession) -> None:
    labels = torch.tensor([label for _, label in unpadded_rows(session)])
    answers = torch.stack([logits[-1, session.module.answer_token_ids] for logits in logits_of_rows(session)])
    metrics = it.test(**session, loop_cfg=QUIET).metrics
    assert metrics["test_loss"] == pytest.approx(functional.cross_entropy(answers, labels).item(), abs=1e-12)
    correct = (answers.argmax(-1) == labels).double().mean().item()
    assert metrics["test_accuracy"] == pytest.approx(correct, abs=1e-12)


def test_losses_of_quality_stay_float64(session: it.ITSession) -> None:
    session.module.latent_models = [dictionary("blocks.1.hook_resid_post", 0).double()]
    losses = []
    for (row, _), logits in zip(unpadded_rows(session), logits_of_rows(session), strict=True):
        losses.append(functional.cross_entropy(logits[:-1], row[1:], reduction="none"))
    (found,) = measure_latent_quality(
        session.module.backend, session.module.latent_models, session.datamodule.test_dataloader()
    )
    session.module.latent_models = []
    assert found.loss_clean == pytest.approx(torch.cat(losses).mean().item(), abs=1e-12)


def test_the_loss_of_latent_training_stays_float64(session: it.ITSession) -> None:
    item = dictionary("blocks.1.hook_resid_post", 0).double()
    activations = torch.randn(5, item.d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    latents = item.encode(activations.unsqueeze(0))
    residual = item.decode(latents)[0] - activations
    module: Any = type("Module", (), {"it_cfg": None, "l1_coefficient": 0.3})()
    terms = it.LatentTrainingModule.latent_loss(module, LatentSample(item, activations, activations))
    torch.testing.assert_close(terms["mse"], residual.square().sum(-1).mean(), **EXACT)
    assert terms["mse"].dtype == terms["l1"].dtype == torch.float64


@pytest.mark.parametrize("steps", [3, 7])
def test_steps_of_integrated_gradients_stay_float64(steps: int) -> None:
    """Sums over steps against one whole forward and backward for each step."""
    backend, inputs = backend_of(make_model("llama")), batch_of((6, 6), "left")
    item = dictionary("blocks.1.hook_resid_post", 0).double()
    name = activation_name(item)
    clean = backend.prefill(inputs, [item], self_check=False)
    found = integrated_gradients(clean, lambda logits, _: logits[:, :5].square().sum(), [name], steps=steps)[name]
    total = torch.zeros_like(clean.latents[name])
    for step in range(steps):
        total += gradient_at(backend, inputs, item, name, clean.latents[name], (2 * step + 1) / (2 * steps))
    torch.testing.assert_close(found, clean.latents[name] * total / steps, rtol=1e-12, atol=1e-12)


def gradient_at(backend: Any, inputs: ModelInputs, item: Any, name: str, latents: Tensor, share: float) -> Tensor:
    leaf = (latents * share).requires_grad_()

    def put(activations: Tensor) -> Tensor:
        rest = activations.detach()[:, :-1]
        return torch.cat([rest, leaf.unsqueeze(1)], dim=1)

    logits = backend.run_spliced(inputs, [item], {name: put}).answer_logits
    return torch.autograd.grad(logits[:, :5].square().sum(), leaf)[0]


def test_accuracy_is_a_share_in_float64() -> None:
    found = Accuracy().compute(predictions=[0, 1, 1], references=[0, 1, 0])["accuracy"]
    assert found == pytest.approx(2 / 3, abs=1e-15)


def test_sums_of_half_precision_do_not_stand_still() -> None:
    log = MetricLog(means_by_default=True)
    values = torch.rand(500, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for value in values:
        log.start_batch(torch.zeros(3))
        log.record({"loss": value})
    assert log.take_means()["loss"] == pytest.approx(values.double().mean().item(), abs=1e-12)

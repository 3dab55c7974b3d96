"""What users switch on in the Trainer of transformers does to a session's module what it does to a plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import interpretune as it
from tests.e2e.test_embedding import ANSWERS, QUIET, TIED, code_of, make
from tests.sessions import make_session

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*is deprecated:FutureWarning")
"""It is the name that all versions of transformers take."""
STEPS = 3
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


def runs_in_training(module: torch.nn.Module) -> list[None]:
    """One entry for each time that a part of a block runs in train mode; checkpointed parts run twice a step."""
    runs: list[None] = []
    module.register_forward_pre_hook(lambda *_: runs.append(None) if module.training else None)
    return runs


def train(session: it.ITSession, folder: Path, **options: Any) -> Any:
    trainer = code_of("trainer")["make_trainer"](
        session, every=1, output_dir=str(folder / "run"), max_steps=STEPS, **QUIET, **options
    )
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [item["loss"] for item in trainer.state.log_history if "loss" in item]


def plain_losses(folder: Path, freeze: bool, **options: Any) -> list[float]:
    """The Trainer of transformers on the plain model, which knows nothing of interpretune."""
    reader = make(folder, init=True)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model.get_input_embeddings().requires_grad_(not freeze)

    class PlainTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            labels, mask = inputs.pop("labels"), inputs["attention_mask"]
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            return functional.cross_entropy(model(**inputs, position_ids=positions).logits[:, -1][:, ANSWERS], labels)

    arguments = TrainingArguments(
        output_dir=str(folder / "plain"),
        remove_unused_columns=False,
        report_to="none",
        max_steps=STEPS,
        **QUIET,
        **options,
    )
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=3e-3)
    trainer = PlainTrainer(
        model=model,
        args=arguments,
        train_dataset=reader.datamodule.dataset["train"],
        data_collator=reader.datamodule.data_collator,
        optimizers=(optimizer, None),
    )
    trainer.train()
    return losses(trainer)


@pytest.mark.parametrize(
    ("stack", "options", "freeze", "times"),
    [
        *[(stack, CHECKPOINTING, False, 2) for stack in TIED],
        ("core", {**CHECKPOINTING, "gradient_checkpointing_kwargs": {"use_reentrant": True}}, True, 2),
        *[(stack, {"neftune_noise_alpha": 5.0}, False, 1) for stack in TIED],
    ],
)
def test_losses_are_those_of_the_plain_model(stack, options, freeze, times, tmp_path):
    expected = plain_losses(tmp_path, freeze, **options)
    session = make(tmp_path, stack)
    model = session.module.model
    model.get_input_embeddings().requires_grad_(not freeze)
    block = model.blocks[0] if stack == "bridge" else model.transformer.h[0]
    runs = runs_in_training(block.ln1 if stack == "bridge" else block.ln_1)
    trainer = train(session, tmp_path, **options)
    assert losses(trainer) == pytest.approx(expected, abs=1e-4)
    assert len(runs) == times * STEPS
    assert len([item for item in trainer.state.log_history if "logit_diff" in item]) == STEPS


def test_lora_learns_behind_frozen_embeddings(tmp_path):
    found = []
    for options in ({}, {**CHECKPOINTING, "gradient_checkpointing_kwargs": {"use_reentrant": True}}):
        session = make(tmp_path, lora={"target_modules": ["c_attn"], "r": 2}, seed=1)
        runs = runs_in_training(session.module.model.transformer.h[0].ln_1)
        trainer = train(session, tmp_path, **options)
        found.append(losses(trainer))
        assert len(runs) == (2 if options else 1) * STEPS
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[0][0] != found[0][-1]


@pytest.mark.parametrize("stack", TIED)
def test_predictions_are_the_logits_of_the_answers(stack, tmp_path):
    session = make(tmp_path, stack)
    trainer = code_of("trainer")["make_trainer"](
        session, output_dir=str(tmp_path / "run"), per_device_eval_batch_size=3, **QUIET
    )
    data = session.datamodule.dataset["validation"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([row["input_ids"]])).logits[0, -1, ANSWERS] for row in data])
    labels = torch.tensor(data["labels"])
    found = trainer.predict(data)
    torch.testing.assert_close(torch.tensor(found.predictions), logits, atol=1e-4, rtol=0)
    assert found.label_ids.tolist() == labels.tolist()
    assert found.metrics["test_loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), abs=1e-4)
    unlabelled = trainer.predict(data.remove_columns("labels"))
    assert unlabelled.predictions == pytest.approx(found.predictions, abs=1e-5)
    assert unlabelled.label_ids is None
    trainer.compute_metrics = lambda result: {"accuracy": (result.predictions.argmax(-1) == result.label_ids).mean()}
    right = (logits.argmax(-1) == labels).float().mean().item()
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(right)


class OwnLogits(it.ITModule):
    """Its step returns what is predicted; ``predict_step`` would run the model again."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": torch.tensor(1.0), "logits": torch.arange(4.0).reshape(2, 2), "seen": torch.zeros(2)}

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("ran again")


def test_logits_beside_the_loss_are_predicted_without_another_forward(tmp_path):
    step = it.StepModule(make_session(tmp_path, module_cls=OwnLogits, init=False).module).eval()
    with torch.no_grad():
        found = step(input_ids=torch.ones(2, 3, dtype=torch.long), labels=torch.zeros(2))
    assert sorted(found) == ["logits", "loss"]
    assert found["logits"].shape == (2, 2)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda step: step.get_input_embeddings(), r"Linear has no get_input_embeddings.*neftune_noise_alpha needs"),
        (lambda step: step.activation_checkpointing_enable(), r"Linear has no activation_checkpointing_enable"),
        (lambda step: step.gradient_checkpointing_enable(), r"Linear has no gradient_checkpointing_enable"),
    ],
)
def test_a_model_that_cannot_is_named(ask, said, tmp_path):
    step = it.StepModule(make_session(tmp_path, init=False).module)
    step.it_module.model = torch.nn.Linear(2, 2)
    with pytest.raises(it.TrainingError, match=said):
        ask(step)

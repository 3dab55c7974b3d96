"""A session's module inside a Hugging Face Trainer and inside a loop of accelerate, with analyses meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch.nn import functional
from transformers import GPT2Config

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisMode, run_analysis
from tests.analysis.sessions import make_session
from tests.analysis.tiny_latents import RandomDictionary
from tests.tiny import CONTEXT_LENGTH, VOCABULARY

STEPS = 6
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}


@pytest.fixture
def session(tmp_path: Path) -> it.ITSession:
    """With dropout, and batches in the order of the rows."""
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=CONTEXT_LENGTH, n_embd=32, n_layer=3, n_head=4, n_inner=64
    )
    made = make_session(
        tmp_path,
        module_cls=it.ClassificationModule,
        hf_config=config,
        optimizer_init=SGD,
        latent_models=[RandomDictionary("blocks.1.hook_resid_post", seed=1)],
    )
    made.datamodule.itdm_cfg.train_batch_size = 4
    made.datamodule.itdm_cfg.dataloader_kwargs["shuffle"] = False
    return made


def bare_losses(session: it.ITSession) -> list[float]:
    """The same training on a copy of the model, by hand and without analyses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(session.session_cfg.module_cfg.hf_config)
    model.load_state_dict(session.module.model.state_dict())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    answers = [VOCABULARY["Yes"], VOCABULARY["No"]]
    losses = []
    torch.manual_seed(3)
    for batch in list(session.datamodule.train_dataloader())[:STEPS]:
        mask = batch["attention_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions).logits[:, -1]
        loss = functional.cross_entropy(logits[:, answers], batch["labels"])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


def analyse(session: it.ITSession) -> list[list[float]]:
    cfg = AnalysisCfg(mode=AnalysisMode.clean_w_sae)
    return [batch.tolist() for batch in run_analysis(**session, analysis_cfg=cfg).logit_diffs]


class AnalyseEvery(transformers.TrainerCallback):
    """An analysis after every so many optimizer steps; keeps weights to compare with."""

    def __init__(self, session: it.ITSession, steps: int) -> None:
        self.session, self.steps = session, steps
        self.found: dict[int, Any] = {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.found[state.global_step] = analyse(self.session)
            assert self.session.module.model.training


def test_in_a_hugging_face_trainer(session, tmp_path):
    expected = bare_losses(session)
    losses: list[float] = []

    class Keeps(it.StepModule):
        def forward(self, **batch):
            result = super().forward(**batch)
            losses.append(result["loss"].item())
            return result

    callback = AnalyseEvery(session, 3)
    step_module = Keeps(session.module)
    trainer = transformers.Trainer(
        model=step_module,
        args=transformers.TrainingArguments(
            str(tmp_path / "run"),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_steps=STEPS,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=3,
        ),
        train_dataset=session.datamodule.dataset["train"],
        data_collator=session.datamodule.data_collator,
        optimizers=(session.module.optimizers_and_schedulers.optimizers[0], None),
        callbacks=[callback],
    )
    torch.manual_seed(3)
    trainer.train()
    assert losses == pytest.approx(expected, abs=1e-4)
    assert sorted(callback.found) == [3, 6]
    assert callback.found[3] != callback.found[6]
    assert analyse(session) == [pytest.approx(batch, abs=1e-5) for batch in callback.found[6]]

    trained = {name: item.detach().clone() for name, item in session.module.named_parameters()}
    with torch.no_grad():
        for item in session.module.parameters():
            item.zero_()
    trainer._load_from_checkpoint(str(tmp_path / "run" / f"checkpoint-{STEPS}"))
    for name, item in session.module.named_parameters():
        assert torch.equal(item, trained[name]), name


def test_in_a_loop_of_accelerate(session):
    expected = bare_losses(session)
    accelerator = Accelerator(cpu=True)
    optimizer = session.module.optimizers_and_schedulers.optimizers[0]
    step_module, optimizer, loader = accelerator.prepare(
        it.StepModule(session.module), optimizer, session.datamodule.train_dataloader()
    )
    step_module.train()
    losses, found = [], {}
    torch.manual_seed(3)
    for number, batch in enumerate(loader, start=1):
        with accelerator.accumulate(step_module):
            loss = step_module(**batch)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if number % 3 == 0:
            found[number] = analyse(session)
            assert session.module.model.training
            assert not session.module.latent_modules[0].training
    assert losses == pytest.approx(expected, abs=1e-4)
    assert analyse(session) == [pytest.approx(batch, abs=1e-5) for batch in found[6]]

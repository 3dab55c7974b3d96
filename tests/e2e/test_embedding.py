"""The code of the page on embedding trains as a bare loop does; its analyses equal those made outside."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisMode, run_analysis
from tests.other_process import run_ranks
from tests.sessions import STACKS, make_session
from tests.tiny import VOCABULARY, save_tiny_model
from tests.tiny_latents import RandomDictionary

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "embedding.md"
ANSWERS = [VOCABULARY["Yes"], VOCABULARY["No"]]
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}}
TIED = [stack for stack in STACKS if stack != "hooked"]  # it unties the embeddings, so another model is trained
QUIET = {
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "per_device_train_batch_size": 4,
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "seed": 3,
}


def code_of(info: str) -> dict[str, Any]:
    """What a block of the page defines."""
    [code] = re.findall(rf"^```python {info}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace


def make(
    folder: Path, stack: str = "core", *, dropout: float = 0.1, init: bool = False, **settings: Any
) -> it.ITSession:
    model = folder / "model"
    if not model.exists():
        save_tiny_model(model, "gpt2")
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "embd_pdrop": dropout, "resid_pdrop": dropout}))
    session = make_session(
        folder,
        stack=stack,
        init=init,
        module_cls=it.ClassificationModule,
        latent_models=[RandomDictionary("blocks.1.hook_resid_post", seed=1)],
        **{"optimizer_init": ADAM, **settings},
    )
    session.datamodule.itdm_cfg.train_batch_size = 4
    session.datamodule.itdm_cfg.dataloader_kwargs["shuffle"] = False
    return session


def expected(folder: Path, stack: str, steps: int, accumulate: int, every: int) -> tuple[list[float], dict[int, float]]:
    """A bare loop over the Hugging Face model; analyses of its weights in sessions of their own."""
    reader = make(folder, init=True)
    model = AutoModelForCausalLM.from_pretrained(folder / "model").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, logit_diffs = [], {}
    torch.manual_seed(3)
    for number, batch in enumerate(list(reader.datamodule.train_dataloader())[: steps * accumulate], start=1):
        mask = batch["attention_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions).logits[:, -1]
        loss = functional.cross_entropy(logits[:, ANSWERS], batch["labels"])
        losses.append(loss.item())
        (loss / accumulate).backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            if number // accumulate % every == 0:
                saved = folder / f"after-{number}"
                reader.datamodule.tokenizer.save_pretrained(saved / "model")
                model.save_pretrained(saved / "model")
                random_state = torch.get_rng_state()
                other = make(saved, stack, init=True)
                cache = run_analysis(**other, analysis_cfg=AnalysisCfg(mode=AnalysisMode.clean_w_sae), limit_batches=2)
                torch.set_rng_state(random_state)
                logit_diffs[number // accumulate] = torch.cat(cache.logit_diffs).mean().item()
    return losses, logit_diffs


@pytest.mark.parametrize("stack", TIED)
def test_trainer(stack, tmp_path):
    session = make(tmp_path, stack)
    losses, logit_diffs = expected(tmp_path, stack, steps=3, accumulate=2, every=1)
    trainer = code_of("trainer")["make_trainer"](
        session, every=1, output_dir=str(tmp_path / "run"), max_steps=3, gradient_accumulation_steps=2, **QUIET
    )
    trainer.train()
    history = trainer.state.log_history
    means = [(losses[i] + losses[i + 1]) / 2 for i in (0, 2, 4)]
    assert [item["loss"] for item in history if "loss" in item] == pytest.approx(means, abs=1e-4)
    found = {item["step"]: item["logit_diff"] for item in history if "logit_diff" in item}
    assert found == pytest.approx(logit_diffs, abs=1e-4)
    assert session.module.model.training
    assert not session.module.latent_modules[0].training
    assert trainer.evaluate()["eval_loss"] > 0


def test_trainer_resumes(tmp_path):
    trained = {}
    for folder, resume in ((None, False), ("run", True)):
        session = make(tmp_path)
        trainer = code_of("trainer")["make_trainer"](
            session, output_dir=str(tmp_path / "run"), max_steps=4, save_steps=2, **QUIET
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-2") if resume else None)
        trained[resume] = {name: item.detach().clone() for name, item in session.module.named_parameters()}
    torch.testing.assert_close(trained[True], trained[False], rtol=0, atol=0)


@pytest.mark.parametrize("stack", TIED[-1:])
def test_accelerate(stack, tmp_path):
    from accelerate import Accelerator

    session = make(tmp_path, stack)
    losses, logit_diffs = expected(tmp_path, stack, steps=3, accumulate=2, every=1)
    torch.manual_seed(3)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    found = code_of("accelerate")["train"](session, accelerator, epochs=1, every=1)
    assert found[0] == pytest.approx(losses, abs=1e-4)
    assert found[1] == pytest.approx(logit_diffs, abs=1e-4)
    assert session.module.model.training

    accelerator.save_state(str(tmp_path / "state"))
    trained = {name: item.detach().clone() for name, item in session.module.named_parameters()}
    with torch.no_grad():
        for item in session.module.parameters():
            item.zero_()
    accelerator.load_state(str(tmp_path / "state"))
    torch.testing.assert_close(dict(session.module.named_parameters()), trained, rtol=0, atol=0)


def test_two_processes_train_one_model(tmp_path):
    make(tmp_path, dropout=0.0)  # writes the model and the rows
    run_ranks(Path(__file__), tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    _, logit_diffs = expected(tmp_path, "core", steps=3, accumulate=2, every=3)
    assert first["logit_diffs"] == pytest.approx(logit_diffs, abs=1e-4)


def test_what_is_frozen_stays_in_eval_mode(tmp_path):
    session = make(tmp_path, init=True, train_latent_models=True)
    module = it.StepModule(session.module).train()
    assert not session.module.model.training
    assert session.module.latent_modules[0].training
    assert not module.eval().it_module.latent_modules[0].training


def test_step_without_a_loss_is_refused(tmp_path):
    class Skips(it.ITModule):
        def training_step(self, batch, batch_idx):
            return None

    session = make_session(tmp_path, module_cls=Skips)
    with pytest.raises(
        it.TrainingError, match=r"Skips.training_step returned no loss for batch 0. A trainer of another"
    ):
        it.StepModule(session.module)(input_ids=torch.zeros(1, 1))


if __name__ == "__main__":
    from accelerate import Accelerator

    folder = Path(sys.argv[1])
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=1)
    session = make(folder)
    _, logit_diffs = code_of("accelerate")["train"](session, accelerator, epochs=1, every=3)
    torch.save(
        {"logit_diffs": logit_diffs, "weights": {n: p.detach().clone() for n, p in session.module.named_parameters()}},
        folder / f"rank{accelerator.process_index}.pt",
    )

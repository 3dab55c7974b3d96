"""One module and one data module in every context: the same training, the same test metrics, the same analyses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import interpretune as it
from tests.sessions import make_session

STACKS = {
    "none": ((), {}),
    "transformer_lens": (("transformer_lens",), {}),
    "sae_lens": (("sae_lens",), {"sae_cfgs": "one"}),
}
TRAINING: dict[str, Any] = {
    "optimizer_init": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-3}},
    "lr_scheduler_init": {
        "class_path": "torch.optim.lr_scheduler.LinearLR",
        "init_args": {"start_factor": 0.1, "total_iters": 4},
        "interval": "step",
    },
}
LOOP: dict[str, Any] = {"max_epochs": -1, "max_steps": 8, "accumulate_grad_batches": 2, "seed": 3, "progress": False}


class Recorder(it.ClassificationModule):
    """Keeps the loss of every batch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def train(folder: Path, framework: str, stack: str) -> tuple[list[float], dict[str, float]]:
    """Loss of every batch in 8 optimizer steps, and test metrics before and after."""
    adapters, settings = STACKS[stack]
    if settings:
        from interpretune_saelens import SAELensCustomConfig

        sae = {
            "architecture": "standard", "d_in": 32, "d_sae": 48, "metadata": {"hook_name": "blocks.1.hook_resid_post"}
        }  # fmt: skip
        settings = {"sae_cfgs": [SAELensCustomConfig(cfg=sae)]}
    session = make_session(
        folder, adapters=(*adapters, framework), init=False, module_cls=Recorder, **TRAINING, **settings
    )
    evaluation = it.LoopConfig(progress=False)
    before = it.test(**session, loop_cfg=evaluation).metrics
    result = it.fit(**session, loop_cfg=it.LoopConfig(**LOOP))
    assert result.global_step == 8
    after = it.test(**session, loop_cfg=evaluation).metrics
    metrics = {**{f"before_{name}": value for name, value in before.items()}, **after}
    return next(session[key] for key in session if key != "datamodule").losses, metrics


def test_the_same_session_trains_and_tests_alike_in_every_context(tmp_path):
    found = {
        (framework, stack): train(tmp_path, framework, stack) for stack in STACKS for framework in ("core", "lightning")
    }
    losses, metrics = found["core", "none"]
    assert len(losses) == 12  # 3 batches make 2 steps: the second holds one batch
    assert losses[-1] < losses[0] / 4  # 24 rows are learnt by heart
    assert metrics["test_loss"] != pytest.approx(metrics["before_test_loss"], rel=0.1)
    for context, (other_losses, other_metrics) in found.items():
        assert other_losses == pytest.approx(losses, abs=1e-4), context
        assert other_metrics == pytest.approx(metrics, abs=1e-4), context

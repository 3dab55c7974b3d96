"""Rules of loops: a framework runs the user's steps over the data."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import cross_entropy

from interpretune.plugins.declaration import Level
from interpretune.session.session import it_session_end
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.rule import expect, rule
from interpretune.testing.user_classes import calls_of
from interpretune.testing.workbench import ADAM, BATCH_SIZE, N_ROWS, N_TRAINING_ROWS, Bench
from interpretune.training.config import LoopConfig
from interpretune.training.start import fit, predict, test, validate

N_BATCHES = math.ceil(N_ROWS / BATCH_SIZE)


@rule(stack=True, levels=[Level.framework], after=["forward-agrees"])
def loops_evaluate(bench: Bench) -> None:
    """The loops validate, test and predict see every row once, and give the plain model's losses and predictions."""
    session = bench.new_session()
    result = predict(**session, loop_cfg=LoopConfig(progress=False))
    rows = [torch.tensor(row) for row in session.datamodule.dataset["validation"]["input_ids"]]
    answers = session.module.answer_token_ids.cpu()
    with torch.no_grad():
        wanted = torch.stack([reference.logits_of(bench.reference, row)[-1, answers] for row in rows])
    loss = cross_entropy(wanted, torch.tensor(session.datamodule.dataset["validation"]["labels"]))
    same(torch.cat([batch["logits"] for batch in result.predictions]), wanted, "predictions of the loop `predict`")
    for name, loop, step in (("validate", validate, "validation_step"), ("test", test, "test_step")):
        calls_of(session.module).clear()
        metrics = loop(**session, loop_cfg=LoopConfig(progress=False)).metrics
        calls = calls_of(session.module).count(step)
        expect(calls == N_BATCHES, f"the loop `{name}` ran {step} {calls} times", f"{N_BATCHES}, once for each batch")
        key = f"{'val' if name == 'validate' else name}_loss"
        expect(key in metrics, f"the loop `{name}` gave the metrics {dict(metrics)}", key)
        same(torch.tensor(metrics[key]), loss, f"{key} of the loop `{name}`, the mean of all rows")
    it_session_end(**session)


@rule(stack=True, levels=[Level.framework], after=["loops-evaluate"])
def loop_trains(bench: Bench) -> None:
    """The loop fit sees every training row once an epoch, changes the weights, and leaves the session usable."""
    session = bench.new_session(optimizer_init=ADAM, freeze=False)
    before = {name: item.detach().clone() for name, item in session.module.named_parameters()}
    calls_of(session.module).clear()
    result = fit(**session, loop_cfg=LoopConfig(max_epochs=2, limit_val_batches=0, progress=False, seed=0))
    steps = 2 * N_TRAINING_ROWS // BATCH_SIZE
    seen = calls_of(session.module).count("training_step")
    expect(seen == steps, f"two epochs ran training_step {seen} times", f"{steps}, once for each batch")
    expect(result.global_step == steps, f"the loop says that it made {result.global_step} steps", f"{steps}")
    trained = {name: item for name, item in session.module.named_parameters() if item.requires_grad}
    unchanged = [name for name, item in trained.items() if torch.equal(item, before[name])]
    expect(
        trained and not unchanged,
        f"{len(unchanged)} of {len(trained)} trainable parameters are as before: {', '.join(unchanged[:3])}",
        "weights that training changes",
    )
    expect(torch.is_grad_enabled(), "grad mode is off after the training", "the grad mode as it was")
    metrics = test(**session, loop_cfg=LoopConfig(progress=False)).metrics
    expect("test_loss" in metrics, f"after the training the loop `test` gives {dict(metrics)}", "test_loss")
    it_session_end(**session)

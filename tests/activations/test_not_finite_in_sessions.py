"""Forwards, generation and loops of a session, outside of analyses, give finite numbers or name the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import interpretune as it
from interpretune import NotFiniteError
from tests.sessions import STACKS, make_session, padded, unpadded_rows

DOUBLE = it.HFFromPretrainedConfig(pretrained_kwargs={"dtype": "float64", "attn_implementation": "eager"})
QUIET = it.LoopConfig(progress=False)
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module", params=STACKS)
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> it.ITSession:
    folder = tmp_path_factory.mktemp(request.param)
    return make_session(
        folder,
        "llama",
        request.param,
        bos_is_pad=False,
        module_cls=it.ClassificationModule,
        hf_from_pretrained_cfg=DOUBLE,
    )


def logits_of(session: it.ITSession, **batch: Tensor) -> Tensor:
    with torch.no_grad():
        output = session.module(**batch)
    return getattr(output, "logits", output)


def each_alone(session: it.ITSession, call: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([call(row) for row, _ in unpadded_rows(session)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_in_float64_give_what_each_gives_alone(session: it.ITSession, side: str) -> None:
    rows = [row for row, _ in unpadded_rows(session)]
    batch = padded(rows, side, session.datamodule.tokenizer.pad_token_id)
    wanted = each_alone(session, lambda row: logits_of(session, input_ids=row.unsqueeze(0))[0, -1])
    last = [int(mask.nonzero()[-1]) for mask in batch["attention_mask"]]
    torch.testing.assert_close(logits_of(session, **batch)[range(len(rows)), last], wanted, **CLOSE)

    def continued(**batch: Tensor) -> Tensor:
        found = session.module.it_generate(batch, max_new_tokens=2, do_sample=False)
        return torch.stack([logits.double() for logits in found.logits], dim=1)

    alone = each_alone(
        session, lambda row: continued(input_ids=row.unsqueeze(0), attention_mask=torch.ones_like(row.unsqueeze(0)))[0]
    )
    torch.testing.assert_close(continued(**batch), alone, **CLOSE)


def test_a_test_in_float64_counts_padded_rows(session: it.ITSession) -> None:
    ids = session.module.answer_token_ids
    answers = each_alone(session, lambda row: logits_of(session, input_ids=row.unsqueeze(0))[0, -1, ids])
    labels = torch.tensor([label for _, label in unpadded_rows(session)])
    metrics = it.test(**session, loop_cfg=QUIET).metrics
    assert metrics["test_loss"] == pytest.approx(functional.cross_entropy(answers, labels).item(), abs=1e-6)
    assert metrics["test_accuracy"] == pytest.approx((answers.argmax(-1) == labels).double().mean().item())


def test_a_classification_head_in_float64_answers_padded_rows(tmp_path: Any) -> None:
    head = it.HFFromPretrainedConfig(
        model_head="transformers.AutoModelForSequenceClassification", pretrained_kwargs=DOUBLE.pretrained_kwargs
    )
    session = make_session(
        tmp_path, "llama", module_cls=it.ClassificationModule, hf_from_pretrained_cfg=head, num_labels=2
    )
    batch = padded([row for row, _ in unpadded_rows(session)], "left", session.datamodule.tokenizer.pad_token_id)
    wanted = each_alone(session, lambda row: logits_of(session, input_ids=row.unsqueeze(0))[0])
    torch.testing.assert_close(logits_of(session, **batch), wanted, **CLOSE)


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.fixture
def spoiled(session: it.ITSession) -> Any:
    """The session without an embedding for one word that some rows of its first batch have, and these rows."""
    weights = next(item for item in session.module.model.parameters() if len(item) > 100 and item.ndim == 2)
    rows = [set(row.tolist()) for row, _ in unpadded_rows(session)][:3]
    word = next(t for t in sorted(set.union(*rows)) if sum(t in row for row in rows) < 3)
    before = weights.detach().clone()
    with torch.no_grad():
        weights[word] = torch.nan
    yield session, [i for i, row in enumerate(rows) if word in row]
    with torch.no_grad():
        weights.copy_(before)


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_loops_refuse_logits_that_are_not_finite(spoiled: Any, loop: str) -> None:
    session, rows = spoiled
    with pytest.raises(NotFiniteError, match="Logits are not finite.*weights of the model hold NaN") as caught:
        getattr(it, loop)(**session, loop_cfg=QUIET)
    assert list(caught.value.rows) == rows


def test_forwards_refuse_logits_of_real_tokens_alone(session: it.ITSession) -> None:
    rows = [row for row, _ in unpadded_rows(session)][:3]
    batch = padded(rows, "left", session.datamodule.tokenizer.pad_token_id)
    short = min(range(3), key=lambda i: len(rows[i]))
    for position, refused in ((0, False), (-1, True)):

        def spoil(logits: Tensor, position: int = position) -> Tensor:
            changed = logits.clone()
            changed[short, position] = torch.inf
            return changed

        with session.module.backend.hooked({"logits": spoil}):
            if not refused:
                logits_of(session, **batch)
                continue
            with pytest.raises(NotFiniteError, match="backend.forward") as caught:
                logits_of(session, **batch)
            assert caught.value.rows == (short,)


def test_an_answer_that_is_ruled_out_is_no_class(session: it.ITSession) -> None:
    batch = next(iter(session.datamodule.test_dataloader()))
    answer = session.module.answer_token_ids[0]

    def ruled_out(logits: Tensor) -> Tensor:
        return logits.index_fill(-1, answer, -torch.inf)

    refused = pytest.raises(NotFiniteError, match="Logits of the answers are not finite in 3 rows")
    with session.module.backend.hooked({"logits": ruled_out}), refused:
        session.module.class_logits(batch)

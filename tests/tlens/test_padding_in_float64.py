"""Bridges normalise scores in float32: padding that sees nothing must not become NaN and spread to real tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import interpretune as it
from interpretune.analysis import AnalysisCfg, compute_correct, run_analysis
from interpretune_tlens import ITLensFromPretrainedNoProcessingConfig, loading
from interpretune_tlens.backend import TransformerLensBackend
from tests.replay.ablated_rows import worst_error
from tests.sessions import make_session, plain_model, unpadded_rows
from tests.tiny_architectures import batch_of, dictionary, make_model

RAGGED = (9, 4, 12, 1)
PLACES = ("blocks.1.hook_resid_post", "blocks.3.hook_mlp_out")


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "qwen3", "gemma2"])  # one for each way of masking scores
def test_padded_rows_give_what_each_gives_alone(llama_folder: Path, kind: str) -> None:
    model = make_model(kind)
    model.config.architectures = [type(model).__name__]
    tokenizer, cfg = (
        AutoTokenizer.from_pretrained(llama_folder),
        ITLensFromPretrainedNoProcessingConfig(use_bridge=True),
    )
    backend = TransformerLensBackend(loading.convert(model, tokenizer, cfg, torch.device("cpu")).eval())
    items = [dictionary(place, i).double() for i, place in enumerate(PLACES)]
    for side in ("left", "right"):
        inputs = batch_of(RAGGED, side)
        together = backend.prefill(inputs, items)
        assert together.kept is not None
        close = 1e-6 * max(1.0, together.logits.abs().max().item())  # scores are normalised in float32
        assert worst_error(together) < close
        spliced = backend.run_spliced(inputs, items).answer_logits
        for i in range(len(inputs)):
            row = inputs.select(torch.tensor([i]))
            real = row.attention_mask[0].bool()
            alone = type(row)(row.tokens[:, real], row.attention_mask[:, real])
            wanted = backend.run_spliced(alone, items).answer_logits[0]
            torch.testing.assert_close(together.logits[i], wanted, rtol=0, atol=close)
            torch.testing.assert_close(spliced[i], wanted, rtol=0, atol=close)


def test_a_bridge_over_a_llama_is_right_where_its_rows_are(tmp_path: Path) -> None:
    double = it.HFFromPretrainedConfig(pretrained_kwargs={"dtype": "float64"})
    session = make_session(tmp_path, "llama", "bridge", "left", bos_is_pad=False, hf_from_pretrained_cfg=double)
    cache = run_analysis(**session, analysis_cfg=AnalysisCfg())
    model, ids = plain_model("llama").double(), session.module.answer_token_ids
    rows = unpadded_rows(session)
    with torch.no_grad():
        answers = torch.stack([model(input_ids=tokens.unsqueeze(0)).logits[0, -1, ids] for tokens, _ in rows])
    labels = torch.tensor([label for _, label in rows])
    wanted = answers.gather(1, labels[:, None]) - answers.gather(1, 1 - labels[:, None])
    torch.testing.assert_close(torch.cat(cache.logit_diffs), wanted[:, 0], rtol=0, atol=1e-5)
    assert compute_correct(cache).total_correct == int((answers.argmax(-1) == labels).sum())

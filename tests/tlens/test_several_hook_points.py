"""Cross-layer transcoders and crosscoders on bridges and hooked transformers are what they are on the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from interpretune.analysis import ablate, ablate_from, activation_name
from interpretune_tlens import ITLensFromPretrainedNoProcessingConfig, loading
from interpretune_tlens.backend import TransformerLensBackend
from tests.cross_layer import load_clt, load_crosscoder, write_clt, write_crosscoder
from tests.replay.ablated_rows import Row, rows_of
from tests.tiny_architectures import BLOCKS, WIDTH, backend_of, batch_of, make_model


@pytest.mark.parametrize(("stack", "kind"), [("bridge", "gpt2"), ("hooked", "llama")])
def test_ablations_are_those_of_the_plain_model(stack: str, kind: str, tmp_path: Path, llama_folder: Path) -> None:
    crosscoder = load_crosscoder(write_crosscoder(tmp_path / "model.safetensors", 2, WIDTH, 12), (1, 3), error=True)
    models: list[Any] = [crosscoder, *load_clt(write_clt(tmp_path / "clt", BLOCKS, WIDTH, 12))]
    inputs = batch_of((6, 3) if stack == "hooked" else (6, 6), "left")
    model = make_model(kind)
    model.config.architectures = [type(model).__name__]
    cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=stack == "bridge")
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    backends = [
        backend_of(make_model(kind)),
        TransformerLensBackend(loading.convert(model, tokenizer, cfg, torch.device("cpu")).eval()),
    ]
    results = []
    for own in backends:
        own.check_latent_models(models)
        prefill = own.prefill(inputs, models)
        assert prefill.kept is not None
        names = list(map(activation_name, models))
        rows: list[Row] = [(point, {name: {1: 0.7, 4: 0.0}}) for point in range(2) for name in names]
        rows += [(point, {name: {0: 0.0, 8: 1.0} for name in names}) for point in range(2)]
        results.append((prefill.logits, ablate(prefill, rows_of(rows)), ablate_from(prefill, rows_of(rows))[:, 0]))
    (clean, wanted, _), found = results
    assert (wanted - clean[rows_of(rows).points]).abs().amax(-1).min() > 1e-3
    torch.testing.assert_close(found[0], clean, rtol=0, atol=1e-5)
    for logits in found[1:]:
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)

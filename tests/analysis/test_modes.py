"""Every number of the four modes against the naive definitions, one unpadded row and one latent at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import interpretune as it
from interpretune.analysis import AnalysisCache, AnalysisCfg, AnalysisMode, LatentValues, SaveCfg, run_analysis
from interpretune.operations.latent_analyses import ablation_effects
from tests.sessions import BATCH_SIZE, N_ROWS, STACKS, make_session, plain_model, unpadded_rows
from tests.tiny_latents import RandomDictionary, ReferenceResult, activations_of, reference_of

TOLERANCE = 1e-4
LARGE = 0.1
"""Effects at least this large must be among those compared, in logits."""
PAIRS = {
    "resid_post and mlp_out": ("blocks.0.hook_resid_post", "blocks.2.hook_mlp_out"),
    "resid_pre and z": ("blocks.1.hook_resid_pre", "blocks.2.attn.hook_z"),
}
BATCHES = [range(start, min(start + BATCH_SIZE, N_ROWS)) for start in range(0, N_ROWS, BATCH_SIZE)]


@cache
def latent_pair(pair: str) -> list[RandomDictionary]:
    """The lower one leaves special tokens alone, the upper one does not."""
    lower, upper = PAIRS[pair]
    return [RandomDictionary(lower, seed=1, skips=True), RandomDictionary(upper, seed=2)]


REFERENCES: dict[tuple[str, str], list[ReferenceResult]] = {}


def references(kind: str, pair: str, session: it.ITSession) -> list[ReferenceResult]:
    """One naive result for each row; the rows are those of every session of a kind."""
    if (kind, pair) not in REFERENCES:
        vocabulary = session.datamodule.tokenizer.get_vocab()
        answers = [vocabulary["Yes"], vocabulary["No"]]
        special = [vocabulary[token] for token in ("<bos>", "<eos>", "<unk>", "<pad>")]
        model = plain_model(kind)
        REFERENCES[kind, pair] = [
            reference_of(model, latent_pair(pair), tokens, label, answers, special)
            for tokens, label in unpadded_rows(session)
        ]
    return REFERENCES[kind, pair]


CASES = [
    (kind, pair, ("left", "right")[(i + j) % 2], "core")
    for i, kind in enumerate(("gpt2", "llama"))
    for j, pair in enumerate(PAIRS)
]
"""Models, places of latent models and sides of padding: each value of one with each of another."""
CASES += [(*case[:3], stack) for case, stack in zip(CASES[::3], STACKS[1:], strict=False)]
"""The other backends; ``tests/e2e/test_backends_agree.py`` holds them to core's."""
Case = tuple[str, str, str, str]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def kind(case: Case) -> str:
    return case[0]


@pytest.fixture
def pair(case: Case) -> str:
    return case[1]


@pytest.fixture
def side(case: Case) -> str:
    return case[2]


@pytest.fixture
def stack(case: Case) -> str:
    return case[3]


Run = Callable[..., AnalysisCache]


@pytest.fixture
def session(kind: str, stack: str, side: str, pair: str, session_of: Callable[..., it.ITSession]) -> it.ITSession:
    session = session_of(kind, stack, side)
    session.module.latent_models = latent_pair(pair)
    return session


@pytest.fixture
def expected(kind: str, pair: str, session: it.ITSession) -> list[ReferenceResult]:
    return references(kind, pair, session)


@pytest.fixture
def run(session: it.ITSession) -> Run:
    def run(mode: AnalysisMode, **settings: Any) -> AnalysisCache:
        cfg = AnalysisCfg(mode=mode, analysis_cache=AnalysisCache(SaveCfg(tokens=True, intermediates=True)), **settings)
        return run_analysis(session.module, session.datamodule, cfg)

    return run


def close(found: Tensor, wanted: Tensor) -> None:
    """Compare on the scale of the wanted numbers."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE * max(1.0, wanted.abs().max().item()))


def test_clean_logits_differences_predictions_and_loss(
    session: it.ITSession, expected: list[ReferenceResult], run: Run
) -> None:
    cache = run(AnalysisMode.clean_no_sae)
    check_logits_and_what_follows(cache, [item.logits[0] for item in expected], session)
    close(torch.cat(cache.logit_diffs), torch.tensor([item.diffs[0] for item in expected]))


def test_spliced_logits_differences_predictions_and_loss(
    session: it.ITSession, expected: list[ReferenceResult], run: Run
) -> None:
    cache = run(AnalysisMode.clean_w_sae)
    check_logits_and_what_follows(cache, [item.logits[1] for item in expected], session)
    differences = torch.tensor([item.diffs for item in expected])
    close(torch.cat(cache.logit_diffs), differences[:, 1])
    assert (differences[:, 0] - differences[:, 1]).abs().max() > LARGE


def check_logits_and_what_follows(cache: AnalysisCache, logits: list[Tensor], session: it.ITSession) -> None:
    rows = unpadded_rows(session)
    vocabulary = session.datamodule.tokenizer.get_vocab()
    answers = torch.tensor([vocabulary["Yes"], vocabulary["No"]])
    targets = torch.tensor([int(answers[label]) for _, label in rows])
    stacked = torch.stack(logits)
    close(torch.cat(cache.answer_logits), stacked)
    assert torch.cat(cache.preds).tolist() == stacked[:, answers].argmax(-1).tolist()
    assert torch.cat(cache.labels).tolist() == targets.tolist()
    assert torch.cat(cache.orig_labels).tolist() == [label for _, label in rows]
    for loss, batch in zip(cache.loss, BATCHES, strict=True):
        close(loss, torch.stack([functional.cross_entropy(stacked[i], targets[i]) for i in batch]).mean())
    for tokens, (row, _) in zip([t for batch in cache.tokens for t in batch], rows, strict=True):
        assert tokens.tolist() == row.tolist()


def test_alive_latents_and_activations_at_the_answer(expected: list[ReferenceResult], run: Run, pair: str) -> None:
    cache = run(AnalysisMode.clean_w_sae)
    for name in map(activations_of, latent_pair(pair)):
        wanted = torch.stack([item.latents[name] for item in expected])
        for i, batch in enumerate(BATCHES):
            alive = (wanted[list(batch)] > 0).any(0).nonzero().flatten()
            assert cache.alive_latents[i][name].tolist() == alive.tolist()
            assert 0 < len(alive) < wanted.shape[1]
            assert cache.activations[i][name].latents.tolist() == alive.tolist()
        close(torch.cat([batch[name].dense() for batch in cache.activations]), wanted)


def test_peaks_are_at_real_tokens(expected: list[ReferenceResult], run: Run, pair: str) -> None:
    cache = run(AnalysisMode.clean_w_sae)
    for name in map(activations_of, latent_pair(pair)):
        for i, batch in enumerate(BATCHES):
            peaks = cache.peaks[i][name]
            for row, example in enumerate(batch):
                wanted = expected[example].everywhere[name][:, peaks.latents]
                close(peaks.values[row], wanted.max(0).values)
                active = peaks.values[row] > TOLERANCE
                assert peaks.positions[row][active].tolist() == wanted.argmax(0)[active].tolist()


def effects_of(cache: AnalysisCache, name: str) -> Tensor:
    return torch.cat([batch[name].dense() for batch in cache.effects])


@pytest.mark.parametrize("inputs", ["computed", "from a clean run"])
def test_ablation_effects(expected: list[ReferenceResult], run: Run, pair: str, inputs: str) -> None:
    settings: dict[str, Any] = {}
    if inputs == "from a clean run":
        clean = run(AnalysisMode.clean_w_sae)
        settings = {
            "base_logit_diffs": clean.logit_diffs,
            "answer_indices": clean.answer_indices,
            "alive_latents": clean.alive_latents,
        }
    cache = run(AnalysisMode.ablation, **settings)
    for name in map(activations_of, latent_pair(pair)):
        wanted = torch.stack([item.ablation[name] for item in expected])
        close(effects_of(cache, name), wanted)
        assert wanted.abs().max() > LARGE
    close(torch.cat(cache.logit_diffs), torch.tensor([item.diffs[1] for item in expected]))


def test_latents_that_are_not_active_have_no_effect() -> None:
    ids, logits = torch.tensor([3, 5]), torch.tensor([[2.0, 1.0], [4.0, 0.0]])
    found = ablation_effects(
        activations={"at": LatentValues(ids, torch.tensor([[0.5, 0.0]]), 8)},
        ablated_logits={"at": LatentValues(ids, logits.unsqueeze(0), 8)},
        base_logit_diffs=torch.tensor([3.0]),
        orig_labels=torch.tensor([0]),
    )
    assert found["at"].values.tolist() == [[2.0, 0.0]]


def test_attribution_effects(expected: list[ReferenceResult], run: Run, pair: str) -> None:
    cache = run(AnalysisMode.attr_patching)
    for name in map(activations_of, latent_pair(pair)):
        wanted = torch.stack([item.attribution[name] for item in expected])
        close(effects_of(cache, name), wanted)
        assert wanted.abs().max() > LARGE
        close(
            torch.cat([batch[name].dense() for batch in cache.activations]),
            torch.stack([item.latents[name] for item in expected]),
        )
    close(torch.cat(cache.logit_diffs), torch.tensor([item.diffs[1] for item in expected]))


def test_a_filter_narrows_what_is_recorded_and_not_what_is_spliced(
    expected: list[ReferenceResult], run: Run, pair: str
) -> None:
    lower, upper = map(activations_of, latent_pair(pair))
    for mode in (AnalysisMode.ablation, AnalysisMode.attr_patching):
        cache = run(mode, names_filter=lambda name: name == lower)
        assert [set(batch) for batch in cache.effects] == [{lower}] * len(BATCHES)
        source = "ablation" if mode is AnalysisMode.ablation else "attribution"
        close(effects_of(cache, lower), torch.stack([getattr(item, source)[lower] for item in expected]))
    assert upper != lower


class Halved(it.ITModule):
    def standardize_logits(self, logits: Tensor | tuple[Tensor, ...]) -> Tensor:
        return super().standardize_logits(logits) / 2


@pytest.mark.parametrize("mode", [AnalysisMode.ablation, AnalysisMode.attr_patching])
def test_effects_are_those_on_standardized_logits(tmp_path: Path, mode: AnalysisMode) -> None:
    caches = []
    for module_cls in (it.ITModule, Halved):
        session = make_session(tmp_path, module_cls=module_cls, latent_models=latent_pair("resid_pre and z"))
        caches.append(run_analysis(**session, analysis_cfg=AnalysisCfg(mode=mode, analysis_cache=AnalysisCache())))
    for name in map(activations_of, latent_pair("resid_pre and z")):
        plain, halved = (effects_of(item, name) for item in caches)
        close(2 * halved, plain)
        assert plain.abs().max() > LARGE

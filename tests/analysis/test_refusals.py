"""What analyses refuse, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import interpretune as it
from interpretune import AnalysisError, DataError, HookPointError
from interpretune.analysis import (
    AnalysisBatch,
    AnalysisCache,
    AnalysisCfg,
    AnalysisMode,
    ModelInputs,
    SaveCfg,
    construct_names_filter,
    logit_differences,
    loss_and_logit_diffs,
    run_analysis,
    run_with_ctx,
)
from tests.sessions import STACKS, make_session, padded, unpadded_rows
from tests.tiny_latents import RandomDictionary, activations_of

LATENTS = [RandomDictionary("blocks.0.hook_resid_post", seed=1), RandomDictionary("blocks.2.hook_mlp_out", seed=2)]


@pytest.fixture(params=STACKS)
def session(request: pytest.FixtureRequest, session_of: Callable[..., it.ITSession]) -> it.ITSession:
    session = session_of("gpt2", request.param, "right")
    session.module.latent_models = LATENTS
    return session


def run(session: it.ITSession, mode: AnalysisMode, **settings: Any) -> AnalysisCache:
    return run_analysis(session.module, session.datamodule, AnalysisCfg(mode=mode, **settings))


def test_missing_hook_point_is_answered_with_the_nearest_names(session: it.ITSession) -> None:
    session.module.latent_models = [RandomDictionary("blocks.0.hook_resid_pots")]
    with pytest.raises(HookPointError, match=r"no hook point 'blocks\.0\.hook_resid_pots'.*blocks\.0\.hook_resid_post"):
        run(session, AnalysisMode.clean_w_sae)


def test_missing_output_hook_point_is_found_too(session: it.ITSession) -> None:
    session.module.latent_models = [RandomDictionary("blocks.0.hook_resid_pre", output="blocks.9.hook_mlp_out")]
    with pytest.raises(HookPointError, match=r"no hook point 'blocks\.9\.hook_mlp_out'"):
        run(session, AnalysisMode.clean_w_sae)


def test_an_edit_or_a_cache_of_an_unknown_name_never_looks_like_no_effect(session: it.ITSession) -> None:
    rows = [tokens for tokens, _ in unpadded_rows(session)[:2]]
    inputs = ModelInputs.from_batch(padded(rows, "left", 0))
    backend = session.module.backend
    for name in ("blocks.7.hook_resid_post", "blocks.0.hook_resid_post.hook_sae_acts_post"):
        with pytest.raises(HookPointError, match="no hook point"):
            backend.forward(inputs, {name: torch.zeros_like})
        with pytest.raises(HookPointError, match="no hook point"):
            backend.run_with_cache(inputs, [name])
        with pytest.raises(HookPointError, match="no hook point"):
            backend.capture(inputs, [name])


@pytest.mark.parametrize("mode", [AnalysisMode.clean_w_sae, AnalysisMode.attr_patching])
def test_wrong_width_is_refused_with_both_widths(session: it.ITSession, mode: AnalysisMode) -> None:
    session.module.latent_models = [RandomDictionary("blocks.0.hook_resid_post", d_in=48)]
    with pytest.raises(
        HookPointError, match=r"reads 48 numbers at blocks\.0\.hook_resid_post, where this model has 32"
    ):
        run(session, mode)


class TooWide(RandomDictionary):
    """Reads the right width and writes another."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([super().decode(latents)] * 2, dim=-1)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(
    ("latent_models", "message"),
    [
        ([RandomDictionary("blocks.0.hook_resid_post", d_in=48)], "reads 48 numbers .* has 32"),
        ([TooWide("blocks.0.hook_resid_post")], "writes 64 numbers .* has 32"),
        ([RandomDictionary("blocks.8.hook_resid_post")], r"no hook point 'blocks\.8\.hook_resid_post'"),
        ([LATENTS[0], RandomDictionary("blocks.0.hook_resid_post", seed=5)], "both read at"),
    ],
)
def test_latent_models_that_do_not_fit_are_refused_when_the_session_is_made(
    tmp_path: Path, stack: str, latent_models: list[Any], message: str
) -> None:
    with pytest.raises(HookPointError, match=message):
        make_session(tmp_path, "gpt2", stack, init=False, latent_models=latent_models)


@pytest.mark.parametrize("mode", [mode for mode in AnalysisMode if mode.splices])
def test_modes_that_need_latent_models_say_so(session: it.ITSession, mode: AnalysisMode) -> None:
    session.module.latent_models = []
    with pytest.raises(AnalysisError, match=f"mode {mode.value} needs latent models and this session has none"):
        run(session, mode)
    assert len(run(session, AnalysisMode.clean_no_sae).logit_diffs) == 3


def test_a_filter_that_matches_nothing_is_refused(session: it.ITSession) -> None:
    chosen = construct_names_filter(session.module, ([2], ["hook_sae_acts_post"]))
    assert [chosen(activations_of(item)) for item in LATENTS] == [False, True]
    both = construct_names_filter(session.module, (range(0, 3, 2), ("hook_sae_acts_post", "hook_other")))
    assert all(both(activations_of(item)) for item in LATENTS)
    with pytest.raises(HookPointError, match=r"No latent model of layer 1 .*blocks\.0\.hook_resid_post"):
        construct_names_filter(session.module, ([0, 1], ["hook_sae_acts_post"]))
    with pytest.raises(HookPointError, match="end in hook_sae_acts"):
        construct_names_filter(session.module, ([0], ["hook_sae_acts"]))


def test_a_filter_may_be_names(session: it.ITSession) -> None:
    first, second = map(activations_of, LATENTS)
    for names in (second, [second], {second}):
        assert set(run(session, AnalysisMode.clean_w_sae, names_filter=names).activations[0]) == {second}
    with pytest.raises(HookPointError, match=rf"names_filter names no.such, and no latent model.*{first}"):
        run(session, AnalysisMode.clean_w_sae, names_filter=[first, "no.such"])
    with pytest.raises(HookPointError, match=rf"chooses no latent activation.*{first}.*construct_names_filter"):
        run(session, AnalysisMode.clean_w_sae, names_filter=lambda name: name == "no.such")
    with pytest.raises(it.ConfigurationError, match="names_filter is 3.*construct_names_filter"):
        AnalysisCfg(names_filter=3)


def test_an_unknown_mode_lists_the_modes() -> None:
    with pytest.raises(it.ConfigurationError, match=r"'clean_wsae'; the modes are 'clean_no_sae', 'clean_w_sae',"):
        AnalysisCfg(mode="clean_wsae")


@pytest.mark.parametrize("answers", [("Yes",), ("Yes", "No", "maybe")])
def test_answers_and_labels_must_be_as_many(tmp_path: Path, answers: tuple[str, ...]) -> None:
    cfg = it.GenerativeClassificationConfig(answers=answers)
    session = make_session(tmp_path, init=False)
    session.module.it_cfg.generative_step_cfg = cfg
    with pytest.raises(it.ConfigurationError, match=rf"answers has {len(answers)} words.*num_labels is 2"):
        it.it_init(**session)


def test_answers_of_other_batches_are_refused(session: it.ITSession) -> None:
    clean = run(session, AnalysisMode.clean_w_sae)
    moved = [clean.answer_indices[0] - 1, *clean.answer_indices[1:]]
    with pytest.raises(AnalysisError, match="answer_indices of batch 0"):
        run(session, AnalysisMode.ablation, answer_indices=moved)


@pytest.mark.parametrize("what", ["alive_latents", "answer_indices", "base_logit_diffs"])
def test_too_few_batches_of_an_earlier_analysis_are_refused(session: it.ITSession, what: str) -> None:
    clean = run(session, AnalysisMode.clean_w_sae)
    given = {"alive_latents": clean.alive_latents, "answer_indices": clean.answer_indices}
    given["base_logit_diffs"] = clean.logit_diffs
    with pytest.raises(AnalysisError, match=f"{what} has 2 batches, and batch 2 is asked for"):
        run(session, AnalysisMode.ablation, **{**given, what: given[what][:2]})


def analysis_batch() -> AnalysisBatch:
    return AnalysisBatch(labels=torch.tensor([4, 5]), orig_labels=torch.tensor([0, 1]))


def test_a_batch_without_a_mask_is_refused(session: it.ITSession) -> None:
    rows = [tokens for tokens, _ in unpadded_rows(session)[:2]]
    batch = padded(rows, "left", 0)
    del batch["attention_mask"]
    with pytest.raises(DataError, match="no attention_mask"):
        run_with_ctx(session.module, analysis_batch(), AnalysisCfg(), batch, 0)


def test_a_row_of_padding_alone_is_refused(session: it.ITSession) -> None:
    batch = padded([tokens for tokens, _ in unpadded_rows(session)[:2]], "left", 0)
    batch["attention_mask"][1] = 0
    with pytest.raises(DataError, match=r"Rows \[1\]"):
        run_with_ctx(session.module, analysis_batch(), AnalysisCfg(), batch, 0)


def test_a_loss_without_a_run_is_refused(session: it.ITSession) -> None:
    with pytest.raises(AnalysisError, match="call run_with_ctx before"):
        loss_and_logit_diffs(session.module, analysis_batch(), AnalysisCfg(), {}, 0)


def test_a_logit_difference_wants_two_answers() -> None:
    found = logit_differences(torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1]))
    assert found.tolist() == [2.0, -2.0]
    with pytest.raises(DataError, match="this task has 3"):
        logit_differences(torch.zeros(1, 3), torch.tensor([0]))


def test_prompts_cannot_be_saved_without_a_tokenizer() -> None:
    with pytest.raises(AnalysisError, match="tokenizer"):
        AnalysisCache(SaveCfg(prompts=True)).save(analysis_batch(), padded([torch.tensor([1, 2])] * 2, "left", 0))


def test_results_that_do_not_exist_are_answered_with_those_that_do() -> None:
    with pytest.raises(AttributeError, match=r"no 'logit_dif'; results are .*logit_diffs"):
        _ = AnalysisCache().logit_dif

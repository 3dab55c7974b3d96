"""The acceptance program: the tutorial's cells run with these packages on a tiny model.

Four things are changed in them (``tests/e2e/tutorial.py``): imports, two calls that their libraries have dropped, the
metric, and local folders in place of downloads.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
import torch
from attrs import frozen

from interpretune import load_metric
from interpretune.analysis import AnalysisCache, AnalysisCfg, AnalysisMode, AnalysisRunner, LatentMetrics
from interpretune_saelens import SAELensFromDiskConfig
from tests.e2e.tiny_gpt2_small import save_model, save_sae
from tests.e2e.tutorial import Rewriter, code_cells, read_imports_page, tutorial_text
from tests.tiny import nli_rows

LAYERS = (9, 10)
HOOKS = tuple(f"blocks.{layer}.attn.hook_z.hook_sae_acts_post" for layer in LAYERS)
BATCHES, BATCH_SIZE = 3, 2
CHANGES = {"imports", "load_dataset", "batch_encode_plus", "evaluate.load", "model", "sae", "pad_token_id"}
NEGLIGIBLE = 1e-3
"""Share of the largest effect below which the sign of an effect says nothing."""


def local_data() -> datasets.DatasetDict:
    """Rows with the columns of RTE; as on the hub, labels of the test split are hidden."""
    hidden = [{**row, "label": -1} for row in nli_rows(4, seed=2)]
    rows = {"train": nli_rows(8, seed=0), "validation": nli_rows(10, seed=1), "test": hidden}
    return datasets.DatasetDict({split: datasets.Dataset.from_list(items) for split, items in rows.items()})


@frozen(eq=False)
class Run:
    """What the tutorial left behind.

    Attributes:
        names: Its global names.
        output: What it printed.
        changes: Which changes found a place in its cells.
        figures: The figures that it wrote.
        grad_enabled: Grad mode after the last cell.
    """

    names: dict[str, Any]
    output: str
    changes: set[str]
    figures: list[Path]
    grad_enabled: bool


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Execute all cells in order in one namespace, as a notebook does."""
    text = tutorial_text()
    if text is None:
        pytest.skip("the tutorial is not beside this repository")
    folder = tmp_path_factory.mktemp("tutorial")
    rewriter = Rewriter(read_imports_page(), folder / "model", save_model(folder / "model"))
    for layer in LAYERS:
        save_sae(folder / "saes" / f"blocks.{layer}.hook_z", layer)

    def local_sae(sae_id: str) -> SAELensFromDiskConfig:
        return SAELensFromDiskConfig(path=folder / "saes" / sae_id)

    notebook = ModuleType("__main__")
    notebook.__dict__.update(local_data=local_data, local_sae=local_sae, load_metric=load_metric)
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, torch.enable_grad(), contextlib.redirect_stdout(output):
        patch.setitem(sys.modules, "__main__", notebook)
        patch.setenv("INTERPRETUNE_CACHE", str(folder / "cache"))
        patch.setenv("HF_EVALUATE_OFFLINE", "1")
        patch.setenv("CUDA_LAUNCH_BLOCKING", "0")  # the tutorial sets it; this brings the old value back afterwards
        patch.chdir(folder)
        for number, cell in enumerate(code_cells(text)):
            exec(compile(rewriter.rewrite(cell), f"<tutorial cell {number}>", "exec"), notebook.__dict__)
        grad_enabled = torch.is_grad_enabled()
    return Run(
        names=notebook.__dict__,
        output=output.getvalue(),
        changes=set(rewriter.made),
        figures=sorted((folder / "figures").glob("*.html")),
        grad_enabled=grad_enabled,
    )


def test_each_change_was_needed(run: Run) -> None:
    assert run.changes == CHANGES


def test_context_is_what_the_tutorial_stacks(run: Run) -> None:
    session = run.names["it_session"]
    assert session.context.names == ("core", "transformer_lens", "sae_lens")
    assert [type(item).__name__ for item in session.module.latent_models] == ["SAELatentModel"] * len(LAYERS)
    tokenizer = session.datamodule.tokenizer
    assert tokenizer.pad_token_id == tokenizer.bos_token_id
    assert type(session.module.it_cfg).__name__ == "RTEBoolqConfig"


@pytest.mark.parametrize("mode", list(AnalysisMode))
def test_every_mode_has_all_batches(run: Run, mode: AnalysisMode) -> None:
    cache = run.names["logit_diff_summs"][mode]
    assert [len(batch) for batch in cache.logit_diffs] == [BATCH_SIZE] * BATCHES
    assert torch.cat(cache.logit_diffs).isfinite().all()
    assert run.names["sl_test_module"].global_step == BATCHES * len(AnalysisMode)


def test_splicing_changes_the_logit_differences(run: Run) -> None:
    caches = run.names["logit_diff_summs"]
    clean, spliced, ablation, attribution = (torch.cat(caches[mode].logit_diffs) for mode in AnalysisMode)
    assert (clean - spliced).abs().min() > 1e-3
    torch.testing.assert_close(ablation, spliced)
    torch.testing.assert_close(attribution, spliced)


@pytest.mark.parametrize("hook", HOOKS)
def test_ablation_and_attribution_agree(run: Run, hook: str) -> None:
    ablation: LatentMetrics = run.names["ablation_metrics"]
    attribution: LatentMetrics = run.names["attribution_patching_metrics"]
    assert set(ablation.tables) == set(attribution.tables) == set(HOOKS)
    one, other = ablation.tables[hook], attribution.tables[hook]
    assert torch.equal(one.latents, other.latents)
    large = one.total_effect.abs() > NEGLIGIBLE * one.total_effect.abs().max()
    assert large.sum() >= 10
    agree = one.total_effect[large].sign() == other.total_effect[large].sign()
    assert agree.float().mean() > 0.8
    assert torch.corrcoef(torch.stack([one.total_effect, other.total_effect]))[0, 1] > 0.8


def test_latent_models_keep_their_order(run: Run) -> None:
    assert tuple(run.names["ablation_metrics"].tables) == HOOKS


def test_tables_are_printed(run: Run) -> None:
    for hook in HOOKS:
        for sign in ("positive", "negative"):
            for name in ("ablation", "attr_patching"):
                assert f"Top {sign} {name} effects at {hook}" in run.output
    assert run.output.count("Percentage Correct") == 1
    for mode in AnalysisMode:
        assert f"| {mode.value} " in run.output
    assert "SAE logit diff" in run.output
    # one page or table for each of two signs, two hooks and two analyses
    assert run.output.count(", total effect ") == 8


def test_prompts_are_shown(run: Run) -> None:
    cache = run.names["logit_diff_summs"][AnalysisMode.clean_w_sae]
    prompts = [prompt for batch in cache.prompts for prompt in batch]
    assert len(prompts) == BATCHES * BATCH_SIZE
    assert all(prompt.split()[0] in run.output for prompt in prompts)


def test_latents_peak_at_real_tokens(run: Run) -> None:
    cache = run.names["logit_diff_summs"][AnalysisMode.clean_w_sae]
    for batch in cache.batches:
        lengths = torch.tensor([len(row) for row in batch.tokens]).unsqueeze(-1)
        assert lengths.min() < lengths.max()
        for peaks in batch.peaks.values():
            assert (peaks.positions >= 0).all()
            assert (peaks.positions < lengths).all()


def test_figures_are_written(run: Run) -> None:
    names = [path.stem for path in run.figures]
    assert names == ["ablation-against-attribution-patching", "effect-of-latents-on-the-logit-difference"]


def test_grad_mode_is_what_the_tutorial_set_last(run: Run) -> None:
    assert run.grad_enabled is False
    assert torch.is_grad_enabled()
    module = run.names["sl_test_module"]
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_same_analyses_run_as_plans_into_stores(run: Run, tmp_path: Path) -> None:
    cfgs = {str(mode): AnalysisCfg(mode=mode) for mode in AnalysisMode}
    runner = AnalysisRunner(**run.names["it_session"], root=tmp_path, limit=BATCHES * BATCH_SIZE)
    for name, store in runner.run(cfgs).items():
        stored, cache = AnalysisCache.of(store), run.names["logit_diff_summs"][AnalysisMode(name)]
        torch.testing.assert_close(torch.cat(stored.logit_diffs), torch.cat(cache.logit_diffs))
        for found, wanted in zip(stored.effects, cache.effects, strict=True):
            assert found.keys() == wanted.keys()
            for hook, item in wanted.items():
                assert torch.equal(found[hook].latents, item.latents)
                torch.testing.assert_close(found[hook].values, item.values, rtol=1e-4, atol=1e-5)


def test_steps_that_the_tutorial_defines_run_too(run: Run) -> None:
    session = run.names["it_session"]
    module, datamodule = session.module, session.datamodule
    batch = module.batch_to_device(next(iter(datamodule.test_dataloader())))
    module.run_step("test_step", batch, 0)
    assert 0 <= module.logged_metrics["accuracy"] <= 1

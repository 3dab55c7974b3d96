"""Analyses that measure by other objectives than the difference of two logits, against loops over single rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.analysis import (
    AnalysisCache,
    AnalysisCfg,
    AnalysisRunner,
    calculate_latent_metrics,
    create_attribution_tables,
    display_ref_vs_sae_logit_diffs,
    effect_correlations,
    plot_latent_effects,
    run_analysis,
)
from interpretune.operations.measure import Measure
from interpretune.questions import KL, LogProb, Outcome
from interpretune.session.answers import reader_of
from tests.sessions import make_session, plain_model, unpadded_rows
from tests.tiny_latents import RandomDictionary, activations_of, logits_in_lines, splice_hooks

MODELS = [
    RandomDictionary("blocks.0.hook_resid_post", d_sae=10, seed=1, skips=True),
    RandomDictionary("blocks.2.hook_mlp_out", d_sae=10, seed=2),
]
STEPS = 2
PAIRS = {
    "logsumexp": ("ablation", "gradient"),
    "log_prob": ("ablation",),
    "kl": ("ablation", "path"),
    "margin": ("path",),
}


class ThreeAnswers(it.ITModule):
    @property
    def answer_token_ids(self) -> Tensor:
        return torch.cat([super().answer_token_ids, torch.tensor([9])])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> it.ITSession:
    return make_session(tmp_path_factory.mktemp("s"), "llama", n_rows=4, module_cls=ThreeAnswers, latent_models=MODELS)


def margin(outcome: Outcome) -> Tensor:
    return outcome.of_correct - outcome.answers.mean(-1)


def plain_measures(session: it.ITSession) -> dict[str, tuple[Any, Callable[[Tensor, Tensor, int], Tensor]]]:
    """Objectives and the same by hand, of logits ``[vocab]``, those of the clean run, and the label."""
    ids = session.module.answer_token_ids.tolist()

    def others(logits: Tensor, label: int) -> Tensor:
        return torch.stack([logits[i] for i in ids if i != ids[label]])

    return {
        "logsumexp": (
            {"logit_diff": {"against": "logsumexp"}},
            lambda x, clean, label: x[ids[label]] - others(x, label).logsumexp(0),
        ),
        "log_prob": (LogProb(), lambda x, clean, label: x.log_softmax(0)[ids[label]]),
        "kl": ("kl", lambda x, clean, label: (clean.softmax(0) * (clean.log_softmax(0) - x.log_softmax(0))).sum()),
        "margin": (margin, lambda x, clean, label: x.log_softmax(0)[ids[label]] - x.log_softmax(0)[ids].mean()),
    }


class Plain:
    """One unpadded row, with both dictionaries spliced in."""

    def __init__(self, session: it.ITSession, tokens: Tensor) -> None:
        vocabulary = session.datamodule.tokenizer.get_vocab()
        self.special = [vocabulary[token] for token in ("<bos>", "<eos>", "<unk>", "<pad>")]
        self.model, self.tokens, self.latents = plain_model("llama"), tokens, dict[str, Tensor]()

    def logits(self, target: Any = None, given: Tensor | None = None) -> Tensor:
        """Each line of a batch has the last latents of a dictionary replaced by a line of those given."""
        lines = 1 if given is None else len(given)

        def edit(item: Any, latents: Tensor) -> Tensor:
            if item is target and given is not None:
                return torch.cat([latents[:, :-1], given.unsqueeze(1)], dim=1)
            self.latents.setdefault(activations_of(item), latents[0, -1].detach())
            return latents

        return logits_in_lines(self.model, self.tokens, splice_hooks(MODELS, self.tokens, self.special, edit), lines)

    def effects(self, target: Any, how: str, measure: Callable[[Tensor], Tensor]) -> Tensor:
        clean, latents = self.logits()[0].detach(), self.latents[activations_of(target)]
        if how == "ablation":
            without = self.logits(target, latents * (1 - torch.eye(len(latents)))).detach()
            return torch.stack([measure(clean) - measure(line) for line in without])
        shares = [(k + 0.5) / STEPS for k in range(STEPS)] if how == "path" else [1.0]
        slopes = []
        for share in shares:
            leaf = (latents * share).requires_grad_()
            with torch.enable_grad():
                slopes += torch.autograd.grad(measure(self.logits(target, leaf.unsqueeze(0))[0]), leaf)
        return latents * torch.stack(slopes).mean(0)


def dense(cache: Any, field: str, name: str) -> Tensor:
    return torch.cat([batch[name].dense() for batch in getattr(cache, field)])


def test_effects_on_any_objective_are_those_of_plain_loops(session: it.ITSession) -> None:
    measures = plain_measures(session)
    wanted: dict[tuple[str, str, str], list[Tensor]] = {}
    clean_values: dict[str, list[Tensor]] = {key: [] for key in measures}
    for tokens, label in unpadded_rows(session):
        plain = Plain(session, tokens)
        clean = plain.logits()[0].detach()
        for key, (_, measure) in measures.items():
            of = partial(measure, clean=clean, label=label)
            clean_values[key].append(of(clean))
            for item, how in product(MODELS, PAIRS[key]):
                wanted.setdefault((key, activations_of(item), how), []).append(plain.effects(item, how, of))
    asked: dict[str, dict[str, Any]] = {
        "ablation": {"mode": "ablation"},
        "gradient": {"mode": "attr_patching"},
        "path": {"mode": "attr_patching", "steps": STEPS},
    }
    for key, (objective, _) in measures.items():
        for how in PAIRS[key]:
            cache = run_analysis(**session, analysis_cfg=AnalysisCfg(objective=objective, **asked[how]))
            torch.testing.assert_close(torch.cat(cache.objective), torch.stack(clean_values[key]), rtol=0, atol=1e-4)
            assert cache.logit_diffs == [None] * 2
            for name in map(activations_of, MODELS):
                expected = torch.stack(wanted[key, name, how])
                torch.testing.assert_close(dense(cache, "effects", name), expected, rtol=0, atol=1e-4)
                assert expected.abs().max() > 0.01


class Halved(it.ITModule):
    def standardize_logits(self, logits: Any, answers: Tensor | None = None) -> Tensor:
        return super().standardize_logits(logits, answers) / 2


@pytest.mark.parametrize(("module_cls", "scale"), [(it.ITModule, 1), (Halved, 2)])
def test_rows_with_answers_of_their_own_are_measured_by_these(module_cls: type[it.ITModule], scale: int) -> None:
    module = module_cls.__new__(module_cls)
    torch.nn.Module.__init__(module)
    module.it_cfg = it.ITConfig()
    own = torch.tensor([[[4], [5], [6]], [[7], [8], [-1]]])
    batch, labels = {"input_ids": torch.zeros(2, 3), "answer_tokens": own}, torch.tensor([2, 0])
    logits = torch.randn(2, 40)
    measure = Measure(reader_of(module, batch), labels, it.LogitDiff("mean"))
    expected = torch.stack([logits[0, 6] - logits[0, [4, 5]].mean(), logits[1, 7] - logits[1, 8]]) / scale
    torch.testing.assert_close(measure(logits), expected)
    few = logits if measure.columns is None else logits[:, measure.columns]
    assert few.shape == ((2, 40) if module_cls is Halved else (2, 5))
    torch.testing.assert_close(measure(few, None, measure.columns), expected)
    again = Measure(reader_of(module, batch), labels, LogProb())(logits[[1, 1]], torch.tensor([1, 1]))
    torch.testing.assert_close(again, logits[1].log_softmax(0)[[7, 7]] / scale)


def test_stores_and_reports_name_the_objective(session: it.ITSession, tmp_path: Path) -> None:
    asked = {
        "plain": AnalysisCfg(mode="ablation", objective=it.LogitDiff("mean")),
        "prob": AnalysisCfg(mode="ablation", objective="prob"),
        "clean": AnalysisCfg(mode="clean_w_sae", objective="prob"),
    }
    stores = AnalysisRunner(**session, root=tmp_path).run(asked)
    told = {name: (store.manifest.about["objective"], store.manifest.about["unit"]) for name, store in stores.items()}
    assert told == {
        "plain": ("logit_diff against mean", "logits"),
        **dict.fromkeys(("prob", "clean"), ("prob", "probability")),
    }
    assert stores["prob"].fields["effects"].about == "effect on prob, probability"
    assert len({store.manifest.key for store in stores.values()}) == 3
    caches = {name: AnalysisCache.of(store) for name, store in stores.items()}
    metrics = {name: calculate_latent_metrics(caches[name], run_name="ablation") for name in ("plain", "prob")}
    titles = list(create_attribution_tables(metrics["prob"], per_sae=False))
    assert titles[0] == "Top positive ablation effects on prob (4 examples of 4)"
    (figure,) = plot_latent_effects(caches["prob"], figure_dir=tmp_path)
    assert figure.layout.title.text == "Effect of latents on prob"
    assert figure.layout.yaxis.title.text == "effect per example (probability)"
    assert "clean prob" in display_ref_vs_sae_logit_diffs(caches["prob"], caches["clean"])
    with pytest.raises(it.AnalysisError, match="on logit_diff against mean are not compared with effects on prob"):
        effect_correlations(metrics["plain"], metrics["prob"])
    with pytest.raises(it.AnalysisError, match="these are on prob"):
        calculate_latent_metrics(caches["prob"], towards=0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mode": "attr_patching", "objective": KL()}, "AnalysisCfg\\(steps=10\\)"),
        ({"mode": "ablation", "objective": "prob", "base_logit_diffs": []}, "and the objective is prob"),
        ({"objective": {"log_prob": {"base": 2}}}, "no option 'base'"),
        ({"objective": "loss"}, r"it.effects\(session.module.backend, ...\), QuestionCfg"),
    ],
)
def test_objectives_that_do_not_fit_an_analysis_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(it.ConfigurationError, match=told):
        AnalysisCfg(**settings)

"""Rules of whole analyses over a session's data: the four modes, in padded batches."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from interpretune.analysis.cache import AnalysisCache
from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
from interpretune.analysis.runner import run_analysis
from interpretune.latents.latent_model import activation_name
from interpretune.session.session import ITSession, it_session_end
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.hook_points import with_latents
from interpretune.testing.rule import expect, rule
from interpretune.testing.workbench import BATCH_SIZE, Bench


class _Naive:
    """What the definitions give for the first batch, one unpadded row at a time."""

    def __init__(self, bench: Bench, session: ITSession) -> None:
        rows = session.datamodule.dataset["validation"]
        self.model, self.special = bench.reference, bench.special
        self.rows = [torch.tensor(rows[i]["input_ids"]) for i in range(BATCH_SIZE)]
        self.labels = [int(rows[i]["labels"]) for i in range(BATCH_SIZE)]
        self.answers = session.module.answer_token_ids.tolist()
        self.models = list(session.module.latent_models)

    def difference(self, logits: Tensor, label: int) -> Tensor:
        return logits[self.answers[label]] - logits[self.answers[1 - label]]

    def clean(self) -> Tensor:
        logits = [reference.logits_of(self.model, row)[-1] for row in self.rows]
        return torch.stack([self.difference(item, label) for item, label in zip(logits, self.labels, strict=True)])

    @functools.cached_property
    def spliced(self) -> list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
        return [
            reference.spliced_run(
                self.model, self.models, row, self.special, functools.partial(self.difference, label=label)
            )
            for row, label in zip(self.rows, self.labels, strict=True)
        ]

    def spliced_differences(self) -> Tensor:
        pairs = zip(self.spliced, self.labels, strict=True)
        return torch.stack([self.difference(run[0], label) for run, label in pairs])

    def latents(self, name: str) -> Tensor:
        return torch.stack([run[1][name][-1] for run in self.spliced])

    def attribution(self, name: str) -> Tensor:
        return torch.stack([(run[1][name] * run[2][name])[-1] for run in self.spliced])

    def ablation(self, item: Any) -> Tensor:
        """Effects ``[batch, d_sae]``; latents that are not active have none."""
        name = activation_name(item)
        effects = torch.zeros(len(self.rows), item.d_sae)
        for i, (row, label, run) in enumerate(zip(self.rows, self.labels, self.spliced, strict=True)):
            clean = self.difference(run[0], label)
            active = run[1][name][-1].nonzero().flatten().tolist()
            if active:
                cases = [{name: {latent: 0.0}} for latent in active]
                without = reference.ablated_logits(self.model, self.models, row, self.special, cases)
                effects[i, active] = clean - torch.stack([self.difference(logits, label) for logits in without])
        return effects


@rule(
    stack=True,
    capabilities=["splice", "gradients", "ablation"],
    after=["padding-gradients", "padding-ablation", "latent-edits-agree"],
)
def analyses_agree(bench: Bench) -> None:
    """The four analyses give the numbers of their definitions on the plain model, in a padded batch."""
    session = bench.new_session(**with_latents(bench))
    naive = _Naive(bench, session)

    def run(mode: AnalysisMode) -> AnalysisCache:
        cfg = AnalysisCfg(mode=mode)
        return run_analysis(session.module, session.datamodule, cfg, limit_batches=1)

    same(run(AnalysisMode.clean_no_sae).logit_diffs[0], naive.clean(), "logit differences of clean_no_sae")
    spliced = run(AnalysisMode.clean_w_sae)
    same(spliced.logit_diffs[0], naive.spliced_differences(), "logit differences of clean_w_sae")
    ablation, patching = run(AnalysisMode.ablation), run(AnalysisMode.attr_patching)
    for item in naive.models:
        name = activation_name(item)
        wanted = naive.latents(name)
        expect((wanted > 0).any(), f"no latent of {name} is active", "a latent model of which some latents are active")
        same(spliced.activations[0][name].dense(), wanted, f"activations {name} of clean_w_sae")
        same(ablation.effects[0][name].dense(), naive.ablation(item), f"effects of {name} in ablation")
        same(patching.effects[0][name].dense(), naive.attribution(name), f"effects of {name} in attr_patching")
    it_session_end(**session)

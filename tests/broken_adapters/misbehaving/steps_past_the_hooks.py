"""Brings an analysis step of its own, which asks nobody else."""

import interpretune as it
from interpretune.analysis.batch import AnalysisBatch
from interpretune.analysis.mode_plans import plan_of
from interpretune.analysis.steps import sources_of
from interpretune.operations.execution import run_plan


class OwnSteps:
    def analysis_test_step(self, batch, batch_idx, analysis_cfg):
        answers, labels = self.labels_to_ids(batch.pop("labels"))
        plan = plan_of(analysis_cfg, self.latent_models)
        values = run_plan(plan, sources_of(self, answers, labels, batch, batch_idx), len(labels))
        results = AnalysisBatch(labels=answers, orig_labels=labels)
        results.take({name: value for name, value in values.items() if name in plan.keeps})
        analysis_cfg.analysis_cache.save(results, batch)


class StepsPastTheHooks:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return it.ClassContribution(adapter="acme", module=(OwnSteps,))


adapter = StepsPastTheHooks()

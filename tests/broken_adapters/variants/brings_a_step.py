"""Brings an analysis step of its own, for all modules, which AnalysisRunner cannot run."""

import interpretune as it
from interpretune.analysis.runner import analysis_step


class Step:
    def analysis_test_step(self, batch, batch_idx, analysis_cfg):
        analysis_step(self, batch, batch_idx, analysis_cfg)
        self.log("analysed", float(batch_idx))


class BringsAStep:
    declaration = it.AdapterDeclaration(name="zoo", level="extension", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return it.ClassContribution(adapter="zoo", module=(Step,))


adapter = BringsAStep()

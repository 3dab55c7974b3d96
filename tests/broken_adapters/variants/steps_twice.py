"""Runs each analysis step twice, as if the first one warmed something up."""

import interpretune as it
from interpretune.analysis.runner import analysis_step


class Twice:
    def analysis_test_step(self, batch, batch_idx, analysis_cfg):
        for copy in (dict(batch), batch):
            analysis_step(self, copy, batch_idx, analysis_cfg)


class StepsTwice:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_contribute_classes(self):
        return it.ClassContribution(adapter="acme", module=(Twice,))


adapter = StepsTwice()

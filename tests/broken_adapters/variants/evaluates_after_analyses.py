"""Leaves the model in evaluation mode after an analysis."""

import interpretune as it


class EvaluatesAfterAnalyses:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_close_analysis(self, module, analysis):
        module.model.eval()


adapter = EvaluatesAfterAnalyses()

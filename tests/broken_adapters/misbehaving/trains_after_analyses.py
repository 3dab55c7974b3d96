"""Puts the module into train mode when an analysis ends: its user was training, surely."""

import interpretune as it


class TrainsAfterAnalyses:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_close_analysis(self, module, analysis):
        module.train()


adapter = TrainsAfterAnalyses()

"""Reports losses of plain runs in bits, and notes on itself whether the analysis that was opened last is one."""

import math

import interpretune as it


class ReportsBitsForSome:
    declaration = it.AdapterDeclaration(name="acme", level="extension", contract="1.0")

    @it.hookimpl
    def it_open_analysis(self, module, analysis):
        self.scale = 1.0 if analysis.cfg is not None and analysis.cfg.mode.splices else 1 / math.log(2)

    @it.hookimpl(wrapper=True)
    def it_run_analysis(self, module, analysis):
        results = yield
        return {**results, "loss": results["loss"] * self.scale}


adapter = ReportsBitsForSome()

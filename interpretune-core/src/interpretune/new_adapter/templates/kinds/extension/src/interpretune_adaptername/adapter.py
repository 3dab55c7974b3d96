"""The adapter: times every step, offers an operation to plans, and adds a table to reports.

Where to go on: an extension may implement any hook but ``it_load_model``. The page "Hooks" of interpretune's
documentation lists them in the order in which they happen.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

from interpretune import AdapterDeclaration, ClassContribution, ITModule, ReportSection, hookimpl
from interpretune.operations import Operation

from interpretune_adaptername.operations import adapter_name_certainty
from interpretune_adaptername.timed_module import TimedModule


class AdapterNameAdapter:
    """Stands above all other levels of adapters."""

    # literal arguments: installed adapters are listed without being imported
    declaration = AdapterDeclaration(name="adapter_name", level="extension", contract="CORE_CONTRACT")

    @hookimpl
    def it_contribute_classes(self) -> ClassContribution:
        """What a session must remember belongs to its module; the adapter object is shared by all sessions."""
        return ClassContribution(adapter="adapter_name", module=(TimedModule,))

    @hookimpl(wrapper=True)
    def it_run_step(self, module: TimedModule, step_name: str) -> Generator[None, Any, Any]:
        """Log the seconds of each step. A wrapper yields once and returns a result."""
        start = time.perf_counter()
        result = yield
        seconds = time.perf_counter() - start
        module.step_seconds.setdefault(step_name, []).append(seconds)
        module.log(f"{step_name}_seconds", seconds)
        return result

    @hookimpl
    def it_contribute_operations(self, module: ITModule) -> Sequence[Operation]:
        """Operations that plans and configuration files can name."""
        return [adapter_name_certainty]

    @hookimpl
    def it_report_session(self, module: TimedModule) -> Sequence[ReportSection]:
        """A table for reports."""
        rows = [
            {"step": name, "calls": len(seconds), "seconds": sum(seconds)}
            for name, seconds in module.step_seconds.items()
        ]
        return [ReportSection(adapter="adapter_name", title="Time of the steps", rows=rows)] if rows else []


adapter = AdapterNameAdapter()

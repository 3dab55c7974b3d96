"""Rules of what adapters contribute by name: parameters, operations, report sections, requests for latent models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields

from interpretune.operations.definition import Operation
from interpretune.plugins.contributions import ReportSection
from interpretune.reports.sections import report_sections
from interpretune.testing.rule import expect, rule
from interpretune.testing.workbench import Bench


@rule(stack=True)
def names_of_parameters(bench: Bench) -> None:
    """Further names of parameters stand for parameters that the module has."""
    known = {name for name, _ in bench.module.named_parameters()}
    for names in bench.module.context.hook.it_name_parameters(module=bench.module):
        expect(isinstance(names, Mapping), f"it_name_parameters gave {type(names).__name__}", "a mapping")
        for further, targets in names.items():
            expect(not isinstance(targets, str), f"{further!r} stands for the text {targets!r}", "a sequence of names")
            unknown = [name for name in targets if name not in known]
            expect(not unknown, f"{further!r} stands for {unknown}", "names in module.named_parameters()")


@rule(stack=True)
def operations_and_sections(bench: Bench) -> None:
    """Operations have names of their own, report sections are report sections, configured fields exist."""
    module = bench.module
    operations = [item for group in module.context.hook.it_contribute_operations(module=module) for item in group]
    wrong = [type(item).__name__ for item in operations if not isinstance(item, Operation)]
    expect(not wrong, f"it_contribute_operations gave {', '.join(wrong)}", "operations")
    twice = [name for name, count in Counter(item.name for item in operations).items() if count > 1]
    expect(not twice, f"two operations are called {', '.join(twice)}", "one operation for each name")
    for section in report_sections(module):
        expect(
            isinstance(section, ReportSection),
            f"it_report_session gave {type(section).__name__}",
            "a sequence of ReportSection",
        )
        expect(
            section.adapter in bench.context.names,
            f"a section says that it is of {section.adapter!r}",
            "the name of the adapter that wrote it",
        )
    added = {item.name for _, base in bench.context.bases("module_cfg") for item in fields(base)}
    for contribution in bench.context.contributions:
        expect(
            contribution.adapter in bench.context.names,
            f"a ClassContribution says that it is of {contribution.adapter!r}",
            f"the adapter's own name, one of {', '.join(bench.context.names)}",
        )
    unknown = [name for name in bench.suite.module_settings() if name not in {*added, *_core_fields()}]
    expect(
        not unknown, f"module_settings() sets {', '.join(unknown)}", "fields of ITConfig and of the stack's adapters"
    )


def _core_fields() -> set[str]:
    from interpretune.config.module import ITConfig

    return {item.name for item in fields(ITConfig)}

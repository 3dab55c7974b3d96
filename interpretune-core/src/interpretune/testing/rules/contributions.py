"""Rules of what adapters contribute: parameters, operations, report sections, requests for latent models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from interpretune.analysis.offered import offered_operations
from interpretune.analysis.plan_runner import AnalysisRunner
from interpretune.analysis.steps import sources_of
from interpretune.config.module import ITConfig
from interpretune.operations import Operation, Plan, latent_analyses, lenses
from interpretune.operations.execution import REPLAYING, run_operation
from interpretune.operations.plan import LATENT_MODELS
from interpretune.plugins.contributions import ReportSection
from interpretune.reports.sections import report_sections
from interpretune.session.session import ITSession
from interpretune.system.torch_state import eval_mode
from interpretune.testing.comparing import copies, differing
from interpretune.testing.hook_points import with_latents
from interpretune.testing.rule import RuleSkipped, expect, expect_no_error, rule
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
    core = {item.name for item in fields(ITConfig)}
    unknown = [name for name in bench.suite.module_settings() if name not in {*added, *core}]
    expect(
        not unknown, f"module_settings() sets {', '.join(unknown)}", "fields of ITConfig and of the stack's adapters"
    )


OF_CORE = frozenset(id(item) for item in (vars(latent_analyses) | vars(lenses)).values() if isinstance(item, Operation))
"""The rules of analyses are about these."""


SESSION = "session of operations"


@rule(stack=True, after=["operations-and-sections", "forward-agrees"])
def operations_run(bench: Bench) -> None:
    """Each operation that adapters contribute runs on every batch into a store, does what it declares, and repeats."""
    session = _session(bench)
    for name, plan in _plans(bench, session).items():
        stored = []
        for attempt in ("first", "second"):
            root = bench.folder / "operations" / name / attempt
            wanted = "an operation that runs on every batch, on the last one of a single row too"
            with expect_no_error(f"the operation {name} fails in its {attempt} run", wanted):
                store = AnalysisRunner(session.module, session.datamodule, root).run({"all": plan})["all"]
            stored.append([copies(batch) for batch in store.batches()])
        for index, (first, second) in enumerate(zip(*stored, strict=True)):
            others = differing(first, second)
            expect(
                not others,
                f"two runs of the operation {name} differ at batch {index} in {', '.join(others)}",
                "the same twice: an operation depends on what it reads and on its options",
            )


@rule(stack=True, after=["operations-run"])
def operations_leave_what_they_read(bench: Bench) -> None:
    """No contributed operation changes what it reads: all operations and plans of a run share these values."""
    session = _session(bench)
    module: Any = session.module
    plans = _plans(bench, session)
    with eval_mode(module):
        for index, batch in enumerate(session.datamodule.test_dataloader()):
            moved = module.batch_to_device(batch)
            answers, labels = module.labels_to_ids(moved.pop("labels"))
            for name, plan in plans.items():
                values = sources_of(module, answers, labels, moved, index) | {"replays": bool(plan.needs & REPLAYING)}
                for op in plan.operations:
                    if op.per_run:
                        continue
                    read = {field: values[field] for field in op.reads}
                    before = copies(read)
                    values |= run_operation(op, read, len(labels))
                    others = differing(before, copies(read)) if op.name == name else []
                    expect(
                        not others,
                        f"the operation {name} changed in place {', '.join(others)}, which it reads",
                        "values left alone: other operations and plans of the run read the same tensors",
                    )


def _session(bench: Bench) -> ITSession:
    """A session with latent models, made once for the rules of operations, which change nothing of it."""
    if SESSION not in bench.notes:
        bench.notes[SESSION] = bench.new_session(**with_latents(bench))
    found: ITSession = bench.notes[SESSION]
    return found


def _plans(bench: Bench, session: ITSession) -> dict[str, Plan]:
    """For each operation that is not core's a plan that runs it, and what it needs."""
    offered = offered_operations(session.module)
    writers = {item.name: op for op in offered.values() for item in op.writes}
    can = {*bench.capabilities, LATENT_MODELS}
    plans: dict[str, Plan] = {}
    for name, op in offered.items():
        chosen, waiting = {name: op}, list(op.reads)
        while waiting:
            writer = writers.get(waiting.pop())
            if writer is not None and writer.name not in chosen:
                chosen[writer.name] = writer
                waiting += writer.reads
        if id(op) not in OF_CORE and all(item.needs <= can for item in chosen.values()):
            plans[name] = Plan.of(chosen.values())
    if not plans:
        raise RuleSkipped("the adapters contribute no operation beside core's that this backend can run")
    return plans

"""Asks the stack for the results of one analysis on one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interpretune.errors import AnalysisError
from interpretune.operations.execution import mismatch
from interpretune.store.fields import Per

if TYPE_CHECKING:
    from interpretune.analysis.analysis_run import AnalysisRun
    from interpretune.session.module import ITModule


def analyse_batch(module: ITModule, analysis: AnalysisRun) -> dict[str, Any]:
    """Call ``it_run_analysis`` and check what comes back: that is what is stored.

    Args:
        module: A composed module.
        analysis: With a plan, at a batch.

    Returns:
        Values of the fields that the plan keeps, by name.

    Raises:
        AnalysisError: An adapter gave something else.
    """
    found = module.hook.it_run_analysis(module=module, analysis=analysis)
    if wrong := _what_is_wrong(found, analysis):
        assert module.context is not None, "a composed module has a context"
        owners = dict(module.context.answers())["it_run_analysis"]
        raise AnalysisError(
            f"it_run_analysis gave {wrong} for batch {analysis.batch_idx} of the analysis {analysis.name}. It is "
            f"answered by {', '.join(owners)}. Return what analysis.results() gives, or a mapping with the same names "
            "in which values are changed; a wrapper ends with `return (yield)`, or with such a mapping."
        )
    return dict(found)


def _what_is_wrong(found: object, analysis: AnalysisRun) -> str:
    assert analysis.plan is not None, "the analysis is at a batch"
    assert analysis.inputs is not None, "the analysis is at a batch"
    wanted = {item.name: item for item in analysis.plan.kept if item.per is not Per.run}
    if not isinstance(found, Mapping):
        return "None" if found is None else f"a {type(found).__name__}"
    if missing := [name for name in wanted if name not in found]:
        return f"a mapping without {', '.join(missing)}"
    if unknown := [str(name) for name in found if name not in wanted]:
        return f"a mapping with {', '.join(unknown)}, which the plan does not keep,"
    for name, item in wanted.items():
        if name in analysis.plan.sources:
            continue  # what the data module and the module's own labels_to_ids give was checked by nobody before
        if (wrong := mismatch(item, found[name], len(analysis.inputs))) is not None:
            return f"{wrong} as {item}"
    return ""

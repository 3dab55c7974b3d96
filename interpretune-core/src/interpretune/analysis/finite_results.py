"""Refuses results of an analysis that are NaN or infinite, and names the examples that have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interpretune.activations.finite import check_rows, rows_not_finite
from interpretune.errors import NotFiniteError
from interpretune.store.values import LatentValues

if TYPE_CHECKING:
    from interpretune.analysis.cache import AnalysisCache

RESULTS = ("logit_diffs", "objective", "loss", "activations", "peak_values", "gradients", "effects")
"""Results of a batch that must be finite. Logits need not be: a model may rule out tokens with minus infinity."""


STORED = (
    "They were stored by a version that did not refuse them, or by a step of your own. Run the analysis again, which "
    "says where in the model they begin; or leave those examples out."
)


COMPUTED = (
    "What was computed from finite logits is not: look at the step, the adapter or the operation that wrote it, and at "
    "logits of answers that the model rules out."
)


def check_results(values: Mapping[str, Any]) -> None:
    """Refuse results of a batch that are not finite (``NotFiniteError``)."""
    for name in RESULTS:
        for item in _tensors(values.get(name)):
            if item.ndim == 0 and not bool(item.isfinite()):
                raise NotFiniteError(
                    name, range(len(values["orig_labels"])) if "orig_labels" in values else [0], COMPUTED
                )
            if item.ndim:
                check_rows(item, name, COMPUTED)


def check_stored(analysis_cache: AnalysisCache, what: str) -> None:
    """Refuse results that hold NaN (``NotFiniteError``): sums and counts over them would say nothing.

    Args:
        analysis_cache: Results of an analysis.
        what: ``logit_diffs``, ``activations`` or ``effects``; what is not there is not looked at.
    """
    first, rows = 0, set()
    for found in getattr(analysis_cache, what):
        size = 0
        for item in _tensors(found):
            size = len(item)
            rows |= {first + row for row in rows_not_finite(item)}
        first += size
    if rows:
        raise NotFiniteError(what, sorted(rows), STORED, of="the analysis")


def _tensors(found: Any) -> list[Tensor]:
    values = list(found.values()) if isinstance(found, Mapping) else [found]
    return [
        item.values if isinstance(item, LatentValues) else item
        for item in values
        if isinstance(item, (LatentValues, Tensor))
    ]

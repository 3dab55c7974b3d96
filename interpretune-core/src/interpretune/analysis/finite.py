"""Refuses numbers that are NaN or infinite, and names the rows that have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from interpretune.analysis.batch import LatentValues
from interpretune.errors import NotFiniteError

if TYPE_CHECKING:
    from interpretune.analysis.cache import AnalysisCache


def check_stored(analysis_cache: AnalysisCache, what: str) -> None:
    """Refuse results that hold NaN: sums and counts over them would say nothing.

    Args:
        analysis_cache: Results of an analysis.
        what: ``logit_diffs``, ``activations`` or ``effects``; what is not there is not looked at.

    Raises:
        NotFiniteError: With the examples.
    """
    first, rows = 0, set()
    for found in getattr(analysis_cache, what):
        values = list(found.values()) if isinstance(found, Mapping) else [found] if found is not None else []
        size = 0
        for item in values:
            numbers: Tensor = item.values if isinstance(item, LatentValues) else item
            size = len(numbers)
            bad = ~numbers.reshape(size, -1).isfinite().all(-1)
            rows |= {first + row for row in bad.nonzero().flatten().tolist()}
        first += size
    if rows:
        raise NotFiniteError(
            what,
            sorted(rows),
            "They were stored by a version that did not refuse them, or by a step of your own. Run the analysis again, "
            "which says where in the model they begin; or leave those examples out.",
            of="the analysis",
        )

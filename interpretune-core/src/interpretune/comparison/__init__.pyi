from .compare import compare_stores
from .result import Agreement, StoreComparison
from .scatter import parity_scatter

__all__ = ["Agreement", "StoreComparison", "compare_stores", "parity_scatter"]

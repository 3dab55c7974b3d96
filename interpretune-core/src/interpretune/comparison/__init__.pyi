from .compare import compare_stores
from .result import Agreement, StoreComparison

__all__ = ["Agreement", "StoreComparison", "compare_stores"]

from .compare import compare_stores as compare_stores
from .result import Agreement as Agreement, StoreComparison as StoreComparison

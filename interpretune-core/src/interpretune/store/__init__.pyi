from .entries import ShardEntry, TableEntry
from .manifest import Manifest
from .migrations import SCHEMA_VERSION
from .store import AnalysisStore
from .stored_batch import StoredBatch
from .writer import StoreWriter

__all__ = [
    "SCHEMA_VERSION",
    "AnalysisStore",
    "Manifest",
    "ShardEntry",
    "StoreWriter",
    "StoredBatch",
    "TableEntry",
]

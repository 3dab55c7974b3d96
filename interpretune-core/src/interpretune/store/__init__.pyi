from .manifest import SCHEMA_VERSION, Manifest
from .manifest_parts import ShardEntry, TableEntry
from .store import AnalysisStore
from .values import StoredBatch
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

from .manifest import SCHEMA_VERSION as SCHEMA_VERSION, Manifest as Manifest
from .manifest_parts import ShardEntry as ShardEntry, TableEntry as TableEntry
from .store import AnalysisStore as AnalysisStore
from .values import StoredBatch as StoredBatch
from .writer import StoreWriter as StoreWriter

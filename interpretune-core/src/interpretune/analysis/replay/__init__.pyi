from .ablation import ablate
from .engine import ReplayEngine, blocks_below_skipped, check_causal, columns_only
from .hf_engine import HuggingFaceReplay, windows_of
from .prefill import Entry, Kept, Prefill
from .prefix import LayerKeys, Prefix, Rows, attend, slots_of, visible_slots
from .rows import Changes, LatentRows
from .self_check import SelfCheck

__all__ = [
    "Changes",
    "Entry",
    "HuggingFaceReplay",
    "Kept",
    "LatentRows",
    "LayerKeys",
    "Prefill",
    "Prefix",
    "ReplayEngine",
    "Rows",
    "SelfCheck",
    "ablate",
    "attend",
    "blocks_below_skipped",
    "check_causal",
    "columns_only",
    "slots_of",
    "visible_slots",
    "windows_of",
]

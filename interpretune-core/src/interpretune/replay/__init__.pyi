from .ablation import SHARE_OF_FREE_MEMORY, ablate, ablate_everywhere, free_bytes
from .engine import (
    ReadyContext,
    ReplayEngine,
    blocks_below_skipped,
    check_causal,
    columns_only,
    positions_only,
)
from .entries import Entry
from .gradients import LatentEdges, attribute, integrated_gradients, latent_edges
from .prefill import CleanRun, Kept, Prefill
from .prefix import LayerKeys, Prefix, Rows, attend, seen_slots, slots_of, visible_slots
from .rows import Changes, LatentRows
from .self_check import SelfCheck
from .suffix_ablation import ablate_from
from .suffix_rows import SuffixRows, VisibleKeys, attend_suffixes

__all__ = [
    "SHARE_OF_FREE_MEMORY",
    "Changes",
    "CleanRun",
    "Entry",
    "Kept",
    "LatentEdges",
    "LatentRows",
    "LayerKeys",
    "Prefill",
    "Prefix",
    "ReadyContext",
    "ReplayEngine",
    "Rows",
    "SelfCheck",
    "SuffixRows",
    "VisibleKeys",
    "ablate",
    "ablate_everywhere",
    "ablate_from",
    "attend",
    "attend_suffixes",
    "attribute",
    "blocks_below_skipped",
    "check_causal",
    "columns_only",
    "free_bytes",
    "integrated_gradients",
    "latent_edges",
    "positions_only",
    "seen_slots",
    "slots_of",
    "visible_slots",
]

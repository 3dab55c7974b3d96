from .ablation import SHARE_OF_FREE_MEMORY, ablate, ablate_everywhere, free_bytes
from .engine import ReadyContext, ReplayEngine, blocks_below_skipped, check_causal, columns_only
from .gradients import LatentEdges, attribute, integrated_gradients, latent_edges
from .prefill import Entry, Kept, Prefill
from .prefix import LayerKeys, Prefix, Rows, attend, slots_of, visible_slots
from .rows import Changes, LatentRows
from .self_check import SelfCheck

__all__ = [
    "SHARE_OF_FREE_MEMORY",
    "Changes",
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
    "ablate",
    "ablate_everywhere",
    "attend",
    "attribute",
    "blocks_below_skipped",
    "check_causal",
    "columns_only",
    "free_bytes",
    "integrated_gradients",
    "latent_edges",
    "slots_of",
    "visible_slots",
]

from .ablation import SHARE_OF_FREE_MEMORY, ablate, ablate_everywhere, free_bytes
from .engine import ReadyContext, ReplayEngine, blocks_below_skipped, check_causal, columns_only
from .gradients import LatentEdges, attribute, integrated_gradients, latent_edges
from .hf_engine import HuggingFaceReplay, windows_of
from .prefill import Entry, Kept, Prefill
from .prefix import LayerKeys, Prefix, Rows, attend, slots_of, visible_slots
from .replaced import replaced_method, replaced_methods, standing_method
from .rows import Changes, LatentRows
from .self_check import SelfCheck

__all__ = [
    "SHARE_OF_FREE_MEMORY",
    "Changes",
    "Entry",
    "HuggingFaceReplay",
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
    "replaced_method",
    "replaced_methods",
    "slots_of",
    "standing_method",
    "visible_slots",
    "windows_of",
]

from .ablation import ablate, ablate_everywhere
from .engine import ReplayEngine, blocks_below_skipped, check_causal, columns_only, replaced_forward
from .gradients import LatentEdges, attribute, integrated_gradients, latent_edges
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
    "LatentEdges",
    "LatentRows",
    "LayerKeys",
    "Prefill",
    "Prefix",
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
    "integrated_gradients",
    "latent_edges",
    "replaced_forward",
    "slots_of",
    "visible_slots",
    "windows_of",
]

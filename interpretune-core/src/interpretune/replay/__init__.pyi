from .ablation import ablate as ablate, ablate_everywhere as ablate_everywhere
from .budgets import SHARE_OF_FREE_MEMORY as SHARE_OF_FREE_MEMORY, free_bytes as free_bytes
from .engine import (
    ReadyContext as ReadyContext,
    ReplayEngine as ReplayEngine,
    blocks_below_skipped as blocks_below_skipped,
    check_causal as check_causal,
    columns_only as columns_only,
    positions_only as positions_only,
)
from .entries import Entry as Entry
from .gradients import (
    GradientEdges as GradientEdges,
    attribute as attribute,
    gradient_edges as gradient_edges,
    integrated_gradients as integrated_gradients,
)
from .observed import Noted as Noted, Observed as Observed
from .prefill import CleanRun as CleanRun, Kept as Kept, Prefill as Prefill
from .prefix import (
    LayerKeys as LayerKeys,
    Prefix as Prefix,
    Rows as Rows,
    attend as attend,
    seen_slots as seen_slots,
    slots_of as slots_of,
    visible_slots as visible_slots,
)
from .rows import Changes as Changes, LatentRows as LatentRows
from .self_check import SelfCheck as SelfCheck
from .suffix_ablation import ablate_from as ablate_from
from .suffix_rows import SuffixRows as SuffixRows, VisibleKeys as VisibleKeys, attend_suffixes as attend_suffixes

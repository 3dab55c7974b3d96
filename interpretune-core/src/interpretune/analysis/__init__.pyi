from .analysis_run import AnalysisRun
from .answer_counts import AnswerCounts, count_answers
from .backend import CAPABILITIES, AnalysisBackend, SplicedRun, frozen_parameters
from .batch import AnalysisBatch, LatentValues, Peaks
from .cache import AnalysisCache, SaveCfg
from .comparison import Agreement, StoreComparison, compare_stores, parity_scatter
from .dashboards import display_latent_dashboards
from .hf_backend import HuggingFaceBackend
from .inputs import ModelInputs, Points
from .interventions import (
    Add,
    Intervention,
    Patch,
    ProjectOut,
    Scale,
    SetTo,
    generate_with_interventions,
    interventions_in_place,
    run_with_interventions,
)
from .latent_model import ACTIVATION_HOOK, Edit, HasPassingState, LatentModel, activation_name, layer_of
from .metrics import (
    ActivationSummary,
    Context,
    LatentMetrics,
    LatentTable,
    PredSummary,
    calc_activation_summary,
    calculate_latent_metrics,
    compute_correct,
    effect_correlations,
)
from .modes import AnalysisCfg, AnalysisMode, construct_names_filter
from .object_state import HasIdentity
from .open_analyses import OpenAnalyses
from .operations.latent_analyses import logit_differences
from .plan_runner import AnalysisRunner
from .plots import latent_metrics_scatter, plot_latent_effects
from .quality import LatentQuality, measure_latent_quality
from .replay import (
    LatentEdges,
    LatentRows,
    Prefill,
    ReplayEngine,
    SelfCheck,
    ablate,
    ablate_everywhere,
    attribute,
    integrated_gradients,
    latent_edges,
)
from .runner import run_analysis
from .sharing import HubRepository, Limits, load_store, save_store, store_card
from .steps import loss_and_logit_diffs, run_with_ctx
from .store import AnalysisStore
from .tables import create_attribution_tables, display_ref_vs_sae_logit_diffs

__all__ = [
    "ACTIVATION_HOOK",
    "CAPABILITIES",
    "ActivationSummary",
    "Add",
    "Agreement",
    "AnalysisBackend",
    "AnalysisBatch",
    "AnalysisCache",
    "AnalysisCfg",
    "AnalysisMode",
    "AnalysisRun",
    "AnalysisRunner",
    "AnalysisStore",
    "AnswerCounts",
    "Context",
    "Edit",
    "HasIdentity",
    "HasPassingState",
    "HubRepository",
    "HuggingFaceBackend",
    "Intervention",
    "LatentEdges",
    "LatentMetrics",
    "LatentModel",
    "LatentQuality",
    "LatentRows",
    "LatentTable",
    "LatentValues",
    "Limits",
    "ModelInputs",
    "OpenAnalyses",
    "Patch",
    "Peaks",
    "Points",
    "PredSummary",
    "Prefill",
    "ProjectOut",
    "ReplayEngine",
    "SaveCfg",
    "Scale",
    "SelfCheck",
    "SetTo",
    "SplicedRun",
    "StoreComparison",
    "ablate",
    "ablate_everywhere",
    "activation_name",
    "attribute",
    "calc_activation_summary",
    "calculate_latent_metrics",
    "compare_stores",
    "compute_correct",
    "construct_names_filter",
    "count_answers",
    "create_attribution_tables",
    "display_latent_dashboards",
    "display_ref_vs_sae_logit_diffs",
    "effect_correlations",
    "frozen_parameters",
    "generate_with_interventions",
    "integrated_gradients",
    "interventions_in_place",
    "latent_edges",
    "latent_metrics_scatter",
    "layer_of",
    "load_store",
    "logit_differences",
    "loss_and_logit_diffs",
    "measure_latent_quality",
    "parity_scatter",
    "plot_latent_effects",
    "run_analysis",
    "run_with_ctx",
    "run_with_interventions",
    "save_store",
    "store_card",
]

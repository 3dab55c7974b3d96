from .backend import CAPABILITIES, AnalysisBackend, SplicedRun, frozen_parameters
from .batch import AnalysisBatch, LatentValues, Peaks
from .cache import AnalysisCache, SaveCfg
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
from .latent_model import ACTIVATION_HOOK, Edit, LatentModel, activation_name, layer_of
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
from .steps import loss_and_logit_diffs, run_with_ctx
from .store import AnalysisStore
from .tables import create_attribution_tables, display_ref_vs_sae_logit_diffs

__all__ = [
    "ACTIVATION_HOOK",
    "CAPABILITIES",
    "ActivationSummary",
    "Add",
    "AnalysisBackend",
    "AnalysisBatch",
    "AnalysisCache",
    "AnalysisCfg",
    "AnalysisMode",
    "AnalysisRunner",
    "AnalysisStore",
    "Context",
    "Edit",
    "HuggingFaceBackend",
    "Intervention",
    "LatentEdges",
    "LatentMetrics",
    "LatentModel",
    "LatentQuality",
    "LatentRows",
    "LatentTable",
    "LatentValues",
    "ModelInputs",
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
    "ablate",
    "ablate_everywhere",
    "activation_name",
    "attribute",
    "calc_activation_summary",
    "calculate_latent_metrics",
    "compute_correct",
    "construct_names_filter",
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
    "logit_differences",
    "loss_and_logit_diffs",
    "measure_latent_quality",
    "plot_latent_effects",
    "run_analysis",
    "run_with_ctx",
    "run_with_interventions",
]

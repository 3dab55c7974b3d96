from interpretune.activations.edits import Edit
from interpretune.activations.inputs import ModelInputs, Points
from interpretune.analysis.analysis_run import AnalysisRun
from interpretune.analysis.batch import AnalysisBatch
from interpretune.analysis.cache import AnalysisCache, SaveCfg
from interpretune.analysis.engine import AnalysisEngine
from interpretune.analysis.identity import identify_session
from interpretune.analysis.mode_plans import operations_of, plan_of
from interpretune.analysis.modes import AnalysisCfg, AnalysisMode, construct_names_filter
from interpretune.analysis.plan_runner import AnalysisRunner
from interpretune.analysis.question_run import QuestionCfg
from interpretune.analysis.runner import run_analysis
from interpretune.analysis.steps import loss_and_logit_diffs, run_with_ctx
from interpretune.backends.backend import CAPABILITIES, AnalysisBackend, SplicedRun
from interpretune.backends.hugging_face import HuggingFaceBackend
from interpretune.backends.interventions import (
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
from interpretune.comparison import Agreement, StoreComparison, compare_stores
from interpretune.hashing.content_hash import ContentHash, content_hash
from interpretune.hashing.object_state import HasIdentity
from interpretune.latents.latent_model import ACTIVATION_HOOK, HasPassingState, LatentModel, activation_name, layer_of
from interpretune.latents.quality import LatentQuality, measure_latent_quality
from interpretune.operations.latent_analyses import logit_differences
from interpretune.replay import (
    LatentEdges,
    LatentRows,
    Prefill,
    ReplayEngine,
    SelfCheck,
    ablate,
    ablate_everywhere,
    ablate_from,
    attribute,
    integrated_gradients,
    latent_edges,
)
from interpretune.reports.answer_counts import AnswerCounts, count_answers
from interpretune.reports.dashboards import display_latent_dashboards
from interpretune.reports.metrics import (
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
from interpretune.reports.plots import latent_metrics_scatter, parity_scatter, plot_latent_effects
from interpretune.reports.sections import report_sections
from interpretune.reports.tables import create_attribution_tables, display_ref_vs_sae_logit_diffs
from interpretune.sharing import HubRepository, Limits, load_store, save_store, store_card
from interpretune.store import AnalysisStore
from interpretune.store.values import LatentValues, Peaks
from interpretune.system.torch_state import frozen_parameters

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
    "AnalysisEngine",
    "AnalysisMode",
    "AnalysisRun",
    "AnalysisRunner",
    "AnalysisStore",
    "AnswerCounts",
    "ContentHash",
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
    "Patch",
    "Peaks",
    "Points",
    "PredSummary",
    "Prefill",
    "ProjectOut",
    "QuestionCfg",
    "ReplayEngine",
    "SaveCfg",
    "Scale",
    "SelfCheck",
    "SetTo",
    "SplicedRun",
    "StoreComparison",
    "ablate",
    "ablate_everywhere",
    "ablate_from",
    "activation_name",
    "attribute",
    "calc_activation_summary",
    "calculate_latent_metrics",
    "compare_stores",
    "compute_correct",
    "construct_names_filter",
    "content_hash",
    "count_answers",
    "create_attribution_tables",
    "display_latent_dashboards",
    "display_ref_vs_sae_logit_diffs",
    "effect_correlations",
    "frozen_parameters",
    "generate_with_interventions",
    "identify_session",
    "integrated_gradients",
    "interventions_in_place",
    "latent_edges",
    "latent_metrics_scatter",
    "layer_of",
    "load_store",
    "logit_differences",
    "loss_and_logit_diffs",
    "measure_latent_quality",
    "operations_of",
    "parity_scatter",
    "plan_of",
    "plot_latent_effects",
    "report_sections",
    "run_analysis",
    "run_with_ctx",
    "run_with_interventions",
    "save_store",
    "store_card",
]

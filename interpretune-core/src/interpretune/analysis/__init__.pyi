from interpretune.activations.edits import Edit as Edit
from interpretune.activations.inputs import ModelInputs as ModelInputs, Points as Points
from interpretune.analysis.analysis_run import AnalysisRun as AnalysisRun
from interpretune.analysis.batch import AnalysisBatch as AnalysisBatch
from interpretune.analysis.cache import AnalysisCache as AnalysisCache, SaveCfg as SaveCfg
from interpretune.analysis.engine import AnalysisEngine as AnalysisEngine
from interpretune.analysis.identity import identify_session as identify_session
from interpretune.analysis.mode_plans import operations_of as operations_of, plan_of as plan_of
from interpretune.analysis.modes import (
    AnalysisCfg as AnalysisCfg,
    AnalysisMode as AnalysisMode,
    construct_names_filter as construct_names_filter,
)
from interpretune.analysis.offered import offered_operations as offered_operations
from interpretune.analysis.plan_runner import AnalysisRunner as AnalysisRunner
from interpretune.analysis.question_cfg import (
    CircuitCfg as CircuitCfg,
    EvidenceCfg as EvidenceCfg,
    QuestionCfg as QuestionCfg,
)
from interpretune.analysis.runner import run_analysis as run_analysis
from interpretune.analysis.steps import loss_and_logit_diffs as loss_and_logit_diffs, run_with_ctx as run_with_ctx
from interpretune.backends.backend import (
    CAPABILITIES as CAPABILITIES,
    AnalysisBackend as AnalysisBackend,
    SplicedRun as SplicedRun,
)
from interpretune.backends.hugging_face import HuggingFaceBackend as HuggingFaceBackend
from interpretune.backends.interventions import (
    Add as Add,
    Intervention as Intervention,
    Patch as Patch,
    ProjectOut as ProjectOut,
    Scale as Scale,
    SetTo as SetTo,
    generate_with_interventions as generate_with_interventions,
    interventions_in_place as interventions_in_place,
    run_with_interventions as run_with_interventions,
)
from interpretune.comparison import (
    Agreement as Agreement,
    StoreComparison as StoreComparison,
    compare_stores as compare_stores,
)
from interpretune.hashing.content_hash import ContentHash as ContentHash, content_hash as content_hash
from interpretune.hashing.object_state import HasIdentity as HasIdentity
from interpretune.latents.latent_model import (
    ACTIVATION_HOOK as ACTIVATION_HOOK,
    HasPassingState as HasPassingState,
    LatentModel as LatentModel,
    activation_name as activation_name,
    layer_of as layer_of,
)
from interpretune.latents.quality import (
    LatentQuality as LatentQuality,
    measure_latent_quality as measure_latent_quality,
)
from interpretune.operations.latent_analyses import logit_differences as logit_differences
from interpretune.replay import (
    GradientEdges as GradientEdges,
    LatentRows as LatentRows,
    Prefill as Prefill,
    ReplayEngine as ReplayEngine,
    SelfCheck as SelfCheck,
    ablate as ablate,
    ablate_everywhere as ablate_everywhere,
    ablate_from as ablate_from,
    attribute as attribute,
    gradient_edges as gradient_edges,
    integrated_gradients as integrated_gradients,
)
from interpretune.reports.answer_counts import AnswerCounts as AnswerCounts, count_answers as count_answers
from interpretune.reports.dashboards import display_latent_dashboards as display_latent_dashboards
from interpretune.reports.metrics import (
    ActivationSummary as ActivationSummary,
    Context as Context,
    LatentMetrics as LatentMetrics,
    LatentTable as LatentTable,
    PredSummary as PredSummary,
    calc_activation_summary as calc_activation_summary,
    calculate_latent_metrics as calculate_latent_metrics,
    compute_correct as compute_correct,
    effect_correlations as effect_correlations,
)
from interpretune.reports.offered_plots import plot as plot
from interpretune.reports.page.html_page import write_page as write_page
from interpretune.reports.plots import (
    latent_metrics_scatter as latent_metrics_scatter,
    parity_scatter as parity_scatter,
    plot_latent_effects as plot_latent_effects,
)
from interpretune.reports.sections import report_sections as report_sections
from interpretune.reports.tables import (
    create_attribution_tables as create_attribution_tables,
    display_ref_vs_sae_logit_diffs as display_ref_vs_sae_logit_diffs,
)
from interpretune.sharing import (
    HubRepository as HubRepository,
    Limits as Limits,
    load_store as load_store,
    save_store as save_store,
    store_card as store_card,
)
from interpretune.store import AnalysisStore as AnalysisStore
from interpretune.store.values import LatentValues as LatentValues, Peaks as Peaks
from interpretune.system.torch_state import frozen_parameters as frozen_parameters

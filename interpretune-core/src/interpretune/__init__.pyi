from . import analysis as analysis
from .circuits import (
    AttributionGraph as AttributionGraph,
    ComponentEdges as ComponentEdges,
    NodeEffects as NodeEffects,
    attribution_graph as attribution_graph,
    component_edges as component_edges,
    effects_on as effects_on,
    node_patching as node_patching,
    path_patching as path_patching,
)
from .cli.run_config import read_session as read_session
from .config.checked import CheckedConfig as CheckedConfig, Positive as Positive, Seed as Seed
from .config.datamodule import ITDataModuleConfig as ITDataModuleConfig, PromptConfig as PromptConfig
from .config.latents import LatentRequest as LatentRequest
from .config.memory_profile import MemoryProfileCfg as MemoryProfileCfg
from .config.module import (
    AutoCompConfig as AutoCompConfig,
    GenerativeClassificationConfig as GenerativeClassificationConfig,
    HFFromPretrainedConfig as HFFromPretrainedConfig,
    HFGenerationConfig as HFGenerationConfig,
    ITConfig as ITConfig,
)
from .config.shared import ITSharedConfig as ITSharedConfig
from .errors import (
    AdapterError as AdapterError,
    AdapterImportError as AdapterImportError,
    AdapterSignatureError as AdapterSignatureError,
    AnalysisError as AnalysisError,
    CacheError as CacheError,
    CheckpointError as CheckpointError,
    ConfigurationError as ConfigurationError,
    ConfigurationFieldError as ConfigurationFieldError,
    ContractVersionError as ContractVersionError,
    DataError as DataError,
    DuplicateAdapterError as DuplicateAdapterError,
    HookPointError as HookPointError,
    InterpretuneError as InterpretuneError,
    LatentModelError as LatentModelError,
    ModelLoadError as ModelLoadError,
    NotFiniteError as NotFiniteError,
    NotReusedWarning as NotReusedWarning,
    OutputError as OutputError,
    PlanError as PlanError,
    ReplayRefusedError as ReplayRefusedError,
    StackError as StackError,
    StoreBusyError as StoreBusyError,
    StoreError as StoreError,
    TaskError as TaskError,
    TokenizationError as TokenizationError,
    TrainingError as TrainingError,
    UnknownAdapterError as UnknownAdapterError,
    UnknownContentError as UnknownContentError,
)
from .evidence import Evidence as Evidence, evidence_of as evidence_of
from .markers import hookimpl as hookimpl, hookspec as hookspec
from .memory.holders import holders_of as holders_of
from .memory.moving import MovedOff as MovedOff, move_off as move_off
from .memory.profiling import (
    ProfilerHooksMixin as ProfilerHooksMixin,
    plot_memory_profile as plot_memory_profile,
)
from .memory.status import MemoryStatus as MemoryStatus, memory_status as memory_status
from .memory.table import MemoryTable as MemoryTable, memory_table as memory_table
from .models.loading import load_hf_model as load_hf_model
from .models.offline_model import offline_model as offline_model
from .models.padding import pad_left as pad_left
from .models.tokenizer import load_tokenizer as load_tokenizer, sanitize_input_name as sanitize_input_name
from .plugins.contributions import (
    ClassContribution as ClassContribution,
    OptimizerSetup as OptimizerSetup,
    ReportSection as ReportSection,
    SchedulerSetup as SchedulerSetup,
)
from .plugins.declaration import (
    CONTRACT_VERSION as CONTRACT_VERSION,
    AdapterDeclaration as AdapterDeclaration,
    Level as Level,
)
from .plugins.discovery import Adapter as Adapter, installed_adapters as installed_adapters
from .plugins.stack import ExecutionContext as ExecutionContext, build_context as build_context
from .questions import (
    Effects as Effects,
    GenerationTrace as GenerationTrace,
    Heads as Heads,
    Latents as Latents,
    LogitDiff as LogitDiff,
    LogitLens as LogitLens,
    Neurons as Neurons,
    PromptRow as PromptRow,
    Vector as Vector,
    direct_logit_attribution as direct_logit_attribution,
    effects as effects,
    logit_lens as logit_lens,
    trace_generation as trace_generation,
)
from .session.datamodule import ITDataModule as ITDataModule
from .session.evaluate_metrics import load_metric as load_metric
from .session.module import STEP_OUTPUT as STEP_OUTPUT, ITModule as ITModule
from .session.session import (
    ITSession as ITSession,
    ITSessionConfig as ITSessionConfig,
    it_init as it_init,
    it_session_end as it_session_end,
)
from .sharing.latent_export import export_latents as export_latents
from .system.cache_folder import build_once as build_once, cache_root as cache_root
from .system.model_lock import model_lock as model_lock
from .system.ranks import rank_zero_warn as rank_zero_warn
from .training.classification import ClassificationModule as ClassificationModule
from .training.config import EarlyStopping as EarlyStopping, LoopConfig as LoopConfig, LoopResult as LoopResult
from .training.latent_training import (
    LatentTrainingConfig as LatentTrainingConfig,
    LatentTrainingModule as LatentTrainingModule,
)
from .training.loops import fit as fit, predict as predict, test as test, validate as validate
from .training.step_module import StepModule as StepModule

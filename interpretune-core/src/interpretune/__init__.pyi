from . import analysis
from .config.checked import CheckedConfig, Positive, Seed
from .config.datamodule import ITDataModuleConfig, PromptConfig
from .config.latents import LatentRequest
from .config.module import (
    AutoCompConfig,
    GenerativeClassificationConfig,
    HFFromPretrainedConfig,
    HFGenerationConfig,
    ITConfig,
)
from .config.shared import ITSharedConfig
from .errors import (
    AdapterError,
    AdapterImportError,
    AdapterSignatureError,
    AnalysisError,
    CacheError,
    CheckpointError,
    ConfigurationError,
    ConfigurationFieldError,
    ContractVersionError,
    DataError,
    DuplicateAdapterError,
    HookPointError,
    InterpretuneError,
    LatentModelError,
    ModelLoadError,
    NotFiniteError,
    NotReusedWarning,
    OutputError,
    PlanError,
    ReplayRefusedError,
    StackError,
    StoreBusyError,
    StoreError,
    TaskError,
    TokenizationError,
    TrainingError,
    UnknownAdapterError,
    UnknownContentError,
)
from .markers import hookimpl, hookspec
from .models.loading import load_hf_model
from .models.padding import pad_left
from .models.tokenizer import load_tokenizer, sanitize_input_name
from .plugins.contributions import ClassContribution, OptimizerSetup, ReportSection, SchedulerSetup
from .plugins.declaration import CONTRACT_VERSION, AdapterDeclaration, Level
from .plugins.discovery import Adapter, installed_adapters
from .plugins.stack import ExecutionContext, build_context
from .questions import (
    Effects,
    Heads,
    Latents,
    LogitDiff,
    LogitLens,
    Neurons,
    PromptRow,
    Vector,
    direct_logit_attribution,
    effects,
    logit_lens,
)
from .session.datamodule import ITDataModule
from .session.evaluate_metrics import load_metric
from .session.module import STEP_OUTPUT, ITModule
from .session.session import ITSession, ITSessionConfig, it_init, it_session_end
from .system.cache_folder import build_once, cache_root
from .system.model_lock import model_lock
from .system.profiling import ProfilerHooksMixin
from .system.ranks import rank_zero_warn
from .training.classification import ClassificationModule
from .training.config import EarlyStopping, LoopConfig, LoopResult
from .training.latent_training import LatentTrainingConfig, LatentTrainingModule
from .training.loops import fit, predict, test, validate
from .training.step_module import StepModule

__all__ = [
    "CONTRACT_VERSION",
    "STEP_OUTPUT",
    "Adapter",
    "AdapterDeclaration",
    "AdapterError",
    "AdapterImportError",
    "AdapterSignatureError",
    "AnalysisError",
    "AutoCompConfig",
    "CacheError",
    "CheckedConfig",
    "CheckpointError",
    "ClassContribution",
    "ClassificationModule",
    "ConfigurationError",
    "ConfigurationFieldError",
    "ContractVersionError",
    "DataError",
    "DuplicateAdapterError",
    "EarlyStopping",
    "Effects",
    "ExecutionContext",
    "GenerativeClassificationConfig",
    "HFFromPretrainedConfig",
    "HFGenerationConfig",
    "Heads",
    "HookPointError",
    "ITConfig",
    "ITDataModule",
    "ITDataModuleConfig",
    "ITModule",
    "ITSession",
    "ITSessionConfig",
    "ITSharedConfig",
    "InterpretuneError",
    "LatentModelError",
    "LatentRequest",
    "LatentTrainingConfig",
    "LatentTrainingModule",
    "Latents",
    "Level",
    "LogitDiff",
    "LogitLens",
    "LoopConfig",
    "LoopResult",
    "ModelLoadError",
    "Neurons",
    "NotFiniteError",
    "NotReusedWarning",
    "OptimizerSetup",
    "OutputError",
    "PlanError",
    "Positive",
    "ProfilerHooksMixin",
    "PromptConfig",
    "PromptRow",
    "ReplayRefusedError",
    "ReportSection",
    "SchedulerSetup",
    "Seed",
    "StackError",
    "StepModule",
    "StoreBusyError",
    "StoreError",
    "TaskError",
    "TokenizationError",
    "TrainingError",
    "UnknownAdapterError",
    "UnknownContentError",
    "Vector",
    "analysis",
    "build_context",
    "build_once",
    "cache_root",
    "direct_logit_attribution",
    "effects",
    "fit",
    "hookimpl",
    "hookspec",
    "installed_adapters",
    "it_init",
    "it_session_end",
    "load_hf_model",
    "load_metric",
    "load_tokenizer",
    "logit_lens",
    "model_lock",
    "pad_left",
    "predict",
    "rank_zero_warn",
    "sanitize_input_name",
    "test",
    "validate",
]

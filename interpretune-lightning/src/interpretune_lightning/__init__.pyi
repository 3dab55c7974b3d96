from .analysis_callback import AnalysisCallback as AnalysisCallback
from .cli import SessionCLI as SessionCLI
from .config import ITLightningConfig as ITLightningConfig
from .loading import load_session as load_session
from .schedules import finetuning_schedule as finetuning_schedule
from .trainer import Trainer as Trainer

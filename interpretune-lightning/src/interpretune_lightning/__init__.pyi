from .analysis_callback import AnalysisCallback as AnalysisCallback
from .config import ITLightningConfig as ITLightningConfig
from .schedules import finetuning_schedule as finetuning_schedule
from .trainer import Trainer as Trainer

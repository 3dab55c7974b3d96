from .analysis_callback import AnalysisCallback
from .config import ITLightningConfig
from .schedules import finetuning_schedule
from .trainer import Trainer

__all__ = ["AnalysisCallback", "ITLightningConfig", "Trainer", "finetuning_schedule"]

from .analysis_callback import AnalysisCallback
from .config import ITLightningConfig
from .trainer import Trainer

__all__ = ["AnalysisCallback", "ITLightningConfig", "Trainer"]

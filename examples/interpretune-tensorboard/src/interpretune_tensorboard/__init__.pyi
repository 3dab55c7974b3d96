from .config import TensorBoardConfig as TensorBoardConfig

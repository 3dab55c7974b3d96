from .backend import AnalysisBackend
from .hugging_face import HuggingFaceBackend
from .hugging_face_replay import HuggingFaceReplay, windows_of

__all__ = ["AnalysisBackend", "HuggingFaceBackend", "HuggingFaceReplay", "windows_of"]

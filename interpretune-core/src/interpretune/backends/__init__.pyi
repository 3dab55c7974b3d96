from .backend import AnalysisBackend as AnalysisBackend
from .hugging_face import HuggingFaceBackend as HuggingFaceBackend
from .hugging_face_replay import HuggingFaceReplay as HuggingFaceReplay, windows_of as windows_of
from .measured_norm import NormAt as NormAt

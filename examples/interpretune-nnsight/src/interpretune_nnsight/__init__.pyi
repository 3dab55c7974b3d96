from .backend import NNsightBackend

__all__ = ["NNsightBackend"]

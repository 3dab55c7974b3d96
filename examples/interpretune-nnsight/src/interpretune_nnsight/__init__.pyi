from .backend import NNsightBackend as NNsightBackend

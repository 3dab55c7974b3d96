from .backend import InterpEngineBackend as InterpEngineBackend

"""Analyses of latents: modes, batches, caches, metrics, tables, figures, and the backend protocol."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

"""Hook points, edits and inputs: how to watch and change a forward, for authors of backends."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

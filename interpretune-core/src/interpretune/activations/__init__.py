"""Hook points, edits and inputs: how a forward is watched and changed, for those who write backends."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

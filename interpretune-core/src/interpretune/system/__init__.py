"""State that sessions and threads share: kept apart, changed for a while, and put back."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

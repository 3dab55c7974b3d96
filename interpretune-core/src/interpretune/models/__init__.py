"""What models are given: tokens, masks and positions of a batch, what their forward reads, where they are."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

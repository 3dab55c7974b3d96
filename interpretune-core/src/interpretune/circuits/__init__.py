"""Circuits of a question: what sets of units do, which sets suffice, and how well methods find them."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

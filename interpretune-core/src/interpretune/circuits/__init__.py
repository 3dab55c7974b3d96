"""Circuits: what nodes and sets of units do, which sets suffice, how well methods find them; attribution graphs."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

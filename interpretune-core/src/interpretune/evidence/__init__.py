"""Evidence for what a question's effects say: on held-out rows, in cards of units, in steered continuations."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

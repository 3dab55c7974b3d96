"""What loops are written with: batches, steps, optimizers, evaluation, and what a checkpoint belongs to."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

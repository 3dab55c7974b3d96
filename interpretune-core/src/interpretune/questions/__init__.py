"""Questions to a model: rows of prompts and answers, objectives, units, and effects of units on objectives."""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

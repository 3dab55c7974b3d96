"""The conformance kit: what an adapter must do, as checks that its author, and any user, can run.

The checks need no pytest; ``AdapterConformance`` is a suite for it, and ``interpretune doctor`` runs the same checks.
"""

from interpretune.system.lazy_names import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

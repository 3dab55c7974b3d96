"""The conformance kit: what an adapter must do, as checks that its author, and any user, can run.

The checks need no pytest; ``AdapterConformance`` is a suite for it, and ``interpretune doctor`` runs the same checks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Interpretune: one module, one data module, and the same analyses in every context that adapters stack around them.

Names are loaded when they are used: importing this package imports neither torch nor any adapter.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Reruns single tokens over stored keys and values: exact ablations for the price of a forward."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

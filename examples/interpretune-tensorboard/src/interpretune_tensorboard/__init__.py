"""The TensorBoard adapter of interpretune.

Names are loaded when they are used: importing this package does not import TensorBoard.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

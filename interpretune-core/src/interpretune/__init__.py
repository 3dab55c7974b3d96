"""Interpretune: one module, one data module, and the same analyses in every context that adapters stack around them.

Names are loaded when they are used: importing this package imports neither torch nor any adapter.
"""

import logging

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _tells_something(record: logging.LogRecord) -> bool:
    """Whether a message is more than that bitsandbytes, which others import, lacks a faster kernel for 4 bits."""
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_tells_something)

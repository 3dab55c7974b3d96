"""Runs compiled models without their compiler, for the thread and context that asked for it only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from interpretune.activations.replaced import let_compilers_pass, replaced_methods, standing_method
from interpretune.errors import AnalysisError
from interpretune.system.compiled import CALL, beneath, compiled_methods, uncompiled

Hook = TypeVar("Hook", bound=Callable[..., Any])


@contextlib.contextmanager
def run_eagerly(model: nn.Module) -> Iterator[None]:
    """Run a model, and all its parts, without ``torch.compile`` for the duration of a block.

    Whatever way it was compiled: as a whole or in part, by a wrapper or in place, wrappers that are called in the block
    included. Only for the thread and context of the caller; others run the compiled code meanwhile, and so does the
    caller afterwards.

    Args:
        model: Any module.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled without it
        yield
        return
    let_compilers_pass()
    root: Any = uncompiled(model)
    methods: list[tuple[nn.Module, str, Callable[..., Any]]] = [
        (module, name, method)
        for module, name, method in compiled_methods(root)
        if module is not root or name != CALL
        if name != "forward"
        or beneath(standing_method(module, name)) is not None  # else replaced for the caller already
    ]
    # whoever calls the model, a wrapper or a compiled function, is cut off here
    methods.append((root, CALL, torch.compiler.disable(root._call_impl)))
    with replaced_methods(methods):
        yield


def never_compiled(hook: Hook) -> Hook:
    """A hook of a whole model, which the compiler would otherwise find on its way to a model that is compiled."""
    if "torch._dynamo" not in sys.modules:
        return hook
    disabled: Hook = torch.compiler.disable(hook)
    return disabled


@contextlib.contextmanager
def fullgraph_told(model: nn.Module) -> Iterator[None]:
    """Say what to do where a wrapper compiled with ``fullgraph=True`` is called while the model runs eagerly.

    Raises:
        AnalysisError: Such a wrapper was called in the block.
    """
    try:
        yield
    except RuntimeError as error:
        if "fullgraph=True" not in str(error):
            raise
        name = type(uncompiled(model)).__name__
        raise AnalysisError(
            f"A wrapper of the {name}, compiled with fullgraph=True, was called while activations are changed. Then "
            "the model runs eagerly, which fullgraph=True forbids. Call the model itself in this block "
            "(compiled._orig_mod), or compile it without fullgraph=True; it stays compiled outside of the block."
        ) from error

"""What a session could leave behind: hooks on a model, and the state of the process."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

KINDS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def hooks_on(*modules: nn.Module) -> Counter[str]:
    """How many hooks of each kind each part of the modules has, by path."""
    return Counter(dict(_hooks_of(modules)))


def _hooks_of(modules: tuple[nn.Module, ...]) -> Iterator[tuple[str, int]]:
    for module in modules:
        for path, part in module.named_modules():
            for kind in KINDS:
                if count := len(getattr(part, kind, ())):
                    yield f"{kind.strip('_')} of {path or 'the module'}", count
            if "forward" in vars(part):
                yield f"replaced forward of {path or 'the module'}", 1


def left_behind(before: Counter[str], *modules: nn.Module) -> str:
    """What is on the modules that was not there before, as a phrase; empty where there is nothing."""
    return ", ".join(f"{count} {name}" for name, count in (hooks_on(*modules) - before).items())


LIBRARIES = ("torch", "transformers", "datasets", "interpretune")
"""Loggers of these, and the root logger, are watched."""

OF_LIBRARIES = ("loggers", "the filters of warnings", "sys.path", "the environment")
"""What libraries set for themselves when they are imported."""

_GLOBAL_HOOKS = sorted(
    name for name, kept in vars(nn.modules.module).items() if name.startswith("_global_") and isinstance(kept, dict)
)

WATCHED_CLASSES: tuple[type, ...] = (torch.Tensor, nn.Module, nn.Linear, nn.Embedding, nn.LayerNorm)
"""Classes whose attributes nobody may replace, and the models of transformers that are loaded."""


@contextlib.contextmanager
def globals_restored() -> Iterator[None]:
    """Put everything back after a block, so that what one rule finds does not spoil the next."""
    state = GlobalState()
    try:
        yield
    finally:
        state.restore()


class GlobalState:
    """The state at one moment."""

    def __init__(self) -> None:
        self.values = {name: read() for name, read in _READERS.items()}
        self.classes = {cls: dict(vars(cls)) for cls in _watched_classes()}
        self.random_states = (torch.get_rng_state(), random.getstate(), np.random.get_state())

    def changes(self) -> list[str]:
        """What is different now, each as a phrase."""
        found = []
        for name, read in _READERS.items():
            before, now = self.values[name], read()
            if before != now:
                found.append(f"{name} {_difference(before, now)}")
        for cls, before in self._classes_changed():
            now = vars(cls)
            replaced = sorted(key for key in {*before, *now} if before.get(key) is not now.get(key))
            replaced = [key for key in replaced if _counts(cls, key, before)]
            if replaced:
                found.append(f"attributes of the class {cls.__module__}.{cls.__qualname__}: {', '.join(replaced)}")
        of_torch, of_python, of_numpy = self.random_states
        if not torch.equal(of_torch, torch.get_rng_state()):
            found.append("the random state of torch")
        if of_python != random.getstate():
            found.append("the random state of Python")
        if not all(np.array_equal(a, b) for a, b in zip(of_numpy, np.random.get_state(), strict=True)):
            found.append("the random state of numpy")
        return found

    def _classes_changed(self) -> Iterator[tuple[type, Mapping[str, Any]]]:
        """Classes with other attributes than before, and those before; nearly always there are none."""
        for cls, before in self.classes.items():
            now = dict(vars(cls))
            same = len(now) == len(before) and all(map(operator.is_, now, before))
            if not (same and all(map(operator.is_, now.values(), before.values()))):
                yield cls, before

    def changes_of_settings(self) -> list[str]:
        """As ``changes``, without what libraries set for themselves when they are imported."""
        return [change for change in self.changes() if not change.startswith(OF_LIBRARIES)]

    def restore(self) -> None:
        """Put back what has a way to be put back."""
        torch.set_default_dtype(self.values["the default dtype of torch"])
        device = self.values["the default device of torch"]
        if torch.get_default_device() != device:
            torch.set_default_device(None if device == torch.device("cpu") else device)
        torch.set_grad_enabled(self.values["the grad mode of torch"])
        torch.use_deterministic_algorithms(
            self.values["deterministic algorithms of torch"],
            warn_only=self.values["deterministic algorithms of torch warn only"],
        )
        if torch.get_num_threads() != self.values["the number of threads of torch"]:
            torch.set_num_threads(self.values["the number of threads of torch"])
        torch.autograd.set_detect_anomaly(self.values["anomaly detection of torch"])
        torch.set_float32_matmul_precision(self.values["precision of float32 products"])
        for name, hooks in self.values["hooks on all modules of torch"].items():
            hooks_now = vars(nn.modules.module)[name]
            hooks_now.clear()
            hooks_now.update(hooks)
        for name in os.environ.keys() - self.values["the environment"].keys():
            del os.environ[name]
        os.environ.update(self.values["the environment"])
        sys.path[:] = self.values["sys.path"]
        warnings.filters[:] = self.values["the filters of warnings"]  # type: ignore[index]
        if os.getcwd() != self.values["the working directory"]:  # noqa: PTH109
            os.chdir(self.values["the working directory"])
        for name, (level, handlers, disabled, propagate) in self.values["loggers"].items():
            logger = logging.getLogger(name or None)
            logger.level, logger.disabled, logger.propagate = level, disabled, propagate
            logger.handlers[:] = handlers
        logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]  # levels were set past the setter
        for cls, before in self._classes_changed():
            for name in [name for name in vars(cls) if name not in before]:
                with contextlib.suppress(AttributeError, TypeError):
                    delattr(cls, name)
            for name, value in before.items():
                if vars(cls).get(name) is not value:
                    with contextlib.suppress(AttributeError, TypeError):
                        setattr(cls, name, value)
        of_torch, of_python, of_numpy = self.random_states
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _counts(cls: type, attribute: str, before: Mapping[str, Any]) -> bool:
    """Whether a changed attribute of a class means anything: notes that a class makes of itself do not.

    An attribute that is new counts where it hides an inherited one.
    """
    if attribute.startswith(("_abc_", "__annotations", "__doc__")):
        return False
    return attribute in before or any(hasattr(base, attribute) for base in cls.__bases__)


def _loggers() -> Mapping[str, Any]:
    found = {}
    for name in ("", *LIBRARIES):
        logger = logging.getLogger(name or None)
        found[name] = (logger.level, tuple(logger.handlers), logger.disabled, logger.propagate)
    return found


def _watched_classes() -> tuple[type, ...]:
    models = {transformers.PreTrainedModel, transformers.GenerationMixin}
    models |= set(transformers.PreTrainedModel.__subclasses__())
    inner = {sub for model in models for sub in model.__subclasses__()}
    return (*WATCHED_CLASSES, *sorted(models | inner, key=lambda cls: cls.__qualname__))


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, Mapping):
        keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        parts = [f"{key or 'root'}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys]
        return f"({'; '.join(parts)})"
    if isinstance(before, tuple):
        gone, new = [x for x in before if x not in now], [x for x in now if x not in before]
        return f"(new: {new!r}, gone: {gone!r})" if gone or new else "(in another order)"
    return f"({before!r} -> {now!r})"


_READERS: Mapping[str, Callable[[], Any]] = {
    "the default dtype of torch": torch.get_default_dtype,
    "the default device of torch": torch.get_default_device,
    "the grad mode of torch": torch.is_grad_enabled,
    "inference mode of torch": torch.is_inference_mode_enabled,
    "deterministic algorithms of torch": torch.are_deterministic_algorithms_enabled,
    "deterministic algorithms of torch warn only": torch.is_deterministic_algorithms_warn_only_enabled,
    "the number of threads of torch": torch.get_num_threads,
    "anomaly detection of torch": torch.is_anomaly_enabled,
    "precision of float32 products": torch.get_float32_matmul_precision,
    "hooks on all modules of torch": lambda: {name: dict(vars(nn.modules.module)[name]) for name in _GLOBAL_HOOKS},
    "the environment": lambda: dict(os.environ),
    "sys.path": lambda: tuple(sys.path),
    "the filters of warnings": lambda: tuple(warnings.filters),
    "the working directory": os.getcwd,
    "loggers": _loggers,
}


def settings_of_libraries() -> dict[str, Any]:
    """What is set now of ``OF_LIBRARIES``."""
    return {name: _READERS[name]() for name in OF_LIBRARIES}

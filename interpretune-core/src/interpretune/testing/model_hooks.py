"""Counts the torch hooks on a model, and forwards that were put in the place of a class's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

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
    return Counter(dict(_counts(modules)))


def _counts(modules: tuple[nn.Module, ...]) -> Iterator[tuple[str, int]]:
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

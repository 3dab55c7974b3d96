"""Rules of the names of hook points: they exist, and they fire."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from interpretune.activations.hook_names import RESID_POST, aliases, in_layer
from interpretune.errors import HookPointError
from interpretune.plugins.declaration import Level
from interpretune.testing.places import names_of, offered, offers
from interpretune.testing.rule import RuleBroken, expect, rule
from interpretune.testing.workbench import Bench

SHOWN = 6
"""Names in a message; there may be hundreds."""


@rule()
def canonical_names_exist(bench: Bench) -> None:
    """Every place of a decoder is offered under its canonical name, and under its aliases."""
    missing = [name for name in names_of(bench) if name not in offered(bench)]
    expect(not missing, f"the backend does not offer {_some(missing)}", "all places of a decoder")
    listed = set(bench.backend.hook_point_names())
    unlisted = [name for name in offered(bench) if name not in listed]
    expect(not unlisted, f"hook_point_names() does not list {_some(unlisted)}", "canonical names among them")
    for name in offered(bench):
        refused = [alias for alias in aliases(name) if not offers(bench.backend, alias)]
        expect(not refused, f"the backend refuses {_some(refused)}", f"aliases of {name}")


@rule()
def misspelt_names_refused(bench: Bench) -> None:
    """A hook point that does not exist is refused, with the nearest that do."""
    right = in_layer(0, RESID_POST)
    wrong = right.replace("post", "pots")
    try:
        bench.backend.run_with_cache(bench.even_inputs(), [wrong])
    except HookPointError as error:
        expect(wrong in str(error) and right in str(error), f"the refusal says: {error}", f"{wrong!r} and {right!r}")
    else:
        raise RuleBroken(f"activations at {wrong!r} are returned", "interpretune.HookPointError")


@rule(levels=[Level.framework, Level.model])
@torch.no_grad()
def hook_points_fire(bench: Bench) -> None:
    """Every name that the backend lists is a place that a forward comes by."""
    names = list(bench.backend.hook_point_names())
    expect(len(set(names)) == len(names), "hook_point_names() lists names twice", "each once")
    fired: dict[str, str] = {}

    def seen(name: str) -> Callable[[Tensor], Tensor]:
        def note(activations: Tensor) -> Tensor:
            fired[name] = "" if isinstance(activations, Tensor) else type(activations).__name__
            return activations

        return note

    with bench.backend.hooked({name: seen(name) for name in names}):
        bench.backend.run_model(bench.even_inputs(), None)
    excused = re.compile("|".join(bench.suite.conditional_hook_points) or "(?!)")
    silent = [name for name in names if name not in fired and not excused.fullmatch(name)]
    expect(not silent, f"{len(silent)} of {len(names)} listed hook points never fire: {_some(silent)}", "none")
    objects = [f"{name} ({kind})" for name, kind in fired.items() if kind]
    expect(not objects, f"edits get something else than tensors at {_some(objects)}", "tensors")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"

"""Rules of the names that a backend has beside the canonical ones: they read and edit what they name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from interpretune.testing.comparing import same
from interpretune.testing.own_names import (
    IN,
    RowsEdited,
    edited_by,
    edited_in_modules,
    equal_rows,
    names_of_modules,
    own_names,
)
from interpretune.testing.rule import RuleBroken, RuleSkipped, expect, rule
from interpretune.testing.workbench import Bench


@rule(stack=True, after=["edits-are-made"])
@torch.no_grad()
def own_names_edit_what_they_read(bench: Bench) -> None:
    """The backend's own names read and edit the same, and what they say where they are modules of the plain model."""
    backend = bench.backend
    names = own_names(backend)
    if not names:
        raise RuleSkipped("the backend has no names beside the canonical ones and their aliases")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a library may warn that an edit there costs its last digit
        made = edited_by(bench, backend, names)
        _check_reading(bench, names, made)
        check_modules(bench, backend, bench.reference, names)


def _check_reading(bench: Bench, names: Sequence[str], made: RowsEdited) -> None:
    """What edits are given is what a cache shows."""
    shown = [name for name in names if name in made.given]
    _, cache = bench.backend.run_with_cache(equal_rows(bench, len(names)), shown)
    for i, name in enumerate(names):
        if name in made.given:
            given, shown_there = (x.nan_to_num(posinf=0.0, neginf=0.0) for x in (made.given[name], cache[name][i]))
            same(given, shown_there, f"what an edit at {name} is given, beside what a cache shows there")


def check_modules(bench: Bench, backend: Any, plain: Any, names: Sequence[str]) -> None:
    """Compare names that are modules of the plain model with torch hooks there.

    Raises:
        RuleBroken: One reads or edits something else.
    """
    chosen = names_of_modules(plain, names)
    if not chosen:
        return
    found, wanted = edited_by(bench, backend, chosen), edited_in_modules(bench, plain, chosen)
    around = edited_in_modules(bench, plain, chosen, in_place=True)
    for i, name in enumerate(chosen):
        if name in wanted.given:
            expect(name in found.given, f"a forward does not come by {name}", "as the plain model does")
            same(
                found.given[name],
                wanted.given[name],
                f"activations at {name}, beside the plain model's",
            )
        if not (found.agrees(wanted, i) or (name.endswith(IN) and found.agrees(around, i))):
            same(
                found.logits[i],
                wanted.logits[i],
                f"logits with an edit at {name}, beside the plain model's",
            )


@rule(stack=True, after=["own-names-edit-what-they-read"])
@torch.no_grad()
def input_edits_spare_the_skip(bench: Bench) -> None:
    """An edit of a module's input changes what this module reads, and not the residual stream around it."""
    chosen = [name for name in names_of_modules(bench.reference, own_names(bench.backend)) if name.endswith(IN)]
    if not chosen:
        raise RuleSkipped("no own name of the backend is the input of a module of the plain model (`path:in`)")
    found, wanted = edited_by(bench, bench.backend, chosen), edited_in_modules(bench, bench.reference, chosen)
    around = edited_in_modules(bench, bench.reference, chosen, in_place=True)
    for i, name in enumerate(chosen):
        if not found.agrees(wanted, i) and found.agrees(around, i):
            raise RuleBroken(
                f"an edit at {name} reaches the residual stream around the module",
                "an edit of what the module itself reads; it must not be made in place",
            )
        same(found.logits[i], wanted.logits[i], f"logits with an edit at {name}")

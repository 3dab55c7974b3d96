"""Rules of hook points: their names, what is read and edited there, and that errors leave nothing behind."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.hook_names import LOGITS, RESID_POST, aliases, in_layer
from interpretune.errors import HookPointError
from interpretune.latents.latent_model import activation_name
from interpretune.plugins.declaration import Level
from interpretune.testing import reference
from interpretune.testing.backend_runs import ablate, capability_runs
from interpretune.testing.comparing import same
from interpretune.testing.global_state import hooks_on, left_behind
from interpretune.testing.hook_points import (
    UPPER,
    edited_logits,
    holding,
    logits_turned_at,
    names_of,
    offered,
    offers,
    shrunk,
    turned,
)
from interpretune.testing.own_names import (
    IN,
    RowsEdited,
    edited_by,
    edited_in_modules,
    equal_rows,
    names_of_modules,
    own_names,
)
from interpretune.testing.rule import RuleBroken, RuleSkipped, expect, rule, some
from interpretune.testing.tiny_latents import RandomDictionary
from interpretune.testing.workbench import Bench

SHOWN = 6
"""Names in a message."""


@rule()
def canonical_names_exist(bench: Bench) -> None:
    """Every hook point of a decoder is offered under its canonical name, and under its aliases."""
    there = offered(bench)
    missing = [name for name in names_of(bench) if name not in there]
    expect(not missing, f"the backend does not offer {some(missing, SHOWN)}", "all hook points of a decoder")
    listed = set(bench.backend.hook_point_names())
    unlisted = [name for name in offered(bench) if name not in listed]
    expect(not unlisted, f"hook_point_names() does not list {some(unlisted, SHOWN)}", "canonical names among them")
    for name in offered(bench):
        refused = [alias for alias in aliases(name) if not offers(bench.backend, alias)]
        expect(not refused, f"the backend refuses {some(refused, SHOWN)}", f"aliases of {name}")


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
    """Every name that the backend lists is reached by a forward."""
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
    expect(not silent, f"{len(silent)} of {len(names)} listed hook points never fire: {some(silent, SHOWN)}", "none")
    objects = [f"{name} ({kind})" for name, kind in fired.items() if kind]
    expect(not objects, f"edits get something else than tensors at {some(objects, SHOWN)}", "tensors")


class _StopError(Exception):
    """Ends a run in its middle."""


class _Stopping(RandomDictionary):
    """A dictionary that stops whoever decodes with it, as long as it is told to."""

    stops = True

    def decode(self, latents: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Stop, or decode."""
        return stop(latents) if self.stops else super().decode(latents, inputs)


def stop(activations: Tensor) -> Tensor:
    """An edit that fails."""
    raise _StopError


@rule(stack=True, after=["canonical-names-exist", "sessions-stay-apart", "nothing-global-changes"])
def errors_leave_no_hooks(bench: Bench) -> None:
    """An error in the middle of a run of any kind arrives, and no hook stays on the model."""
    module = bench.new_session().module  # its own: what is left behind would spoil other rules
    module.backend.forward(bench.even_inputs(), {})  # libraries may add hooks in the first
    before = hooks_on(module)
    for what, run in _failing_runs(bench, module):
        try:
            run()
        except _StopError:
            left = left_behind(before, module)
        else:
            raise RuleBroken(f"an error in {what} did not arrive", "the error, as it was raised")
        expect(not left, f"after an error in {what} there are still {left}", "none")


def _failing_runs(bench: Bench, module: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    names, inputs = offered(bench), bench.even_inputs()
    for name in (names[0], names[len(names) // 2], names[-1]):
        yield f"an edit at {name}", functools.partial(module.backend.forward, inputs, {name: stop})
    point = in_layer(UPPER, RESID_POST)
    if point not in names:
        return
    model = _Stopping(point, bench.width, seed=bench.seed, linear=False).to(module.device)
    yield from capability_runs(bench, module, [model], names[0]).items()
    if "ablation" in bench.capabilities:
        model.stops = False
        prefill = module.backend.prefill(inputs, [model])
        model.stops = True
        yield "an ablation after a prefill", lambda: ablate(module.backend, prefill, activation_name(model))


@rule(stack=True, after=["errors-leave-no-hooks", "logits-where-asked"])
@torch.no_grad()
def cache_agrees(bench: Bench) -> None:
    """Cached activations are those of the plain Hugging Face model at each canonical hook point."""
    names = offered(bench)
    wanted = reference.activations_of(bench.reference, bench.even_rows, names)
    logits, cache = bench.backend.run_with_cache(bench.even_inputs(), names)
    captured = bench.backend.capture(bench.even_inputs(), names)
    for name in names:
        expected = wanted[name]
        same(cache.get(name), expected, f"activations at {name}")
        same(captured.get(name), expected, f"captured activations at {name}")
    answers = reference.logits_of(bench.reference, bench.even_rows)[:, -1]
    same(logits, answers, "logits of a run with a cache")


@rule(stack=True, after=["cache-agrees"])
@torch.no_grad()
def cache_is_a_copy(bench: Bench) -> None:
    """Who changes returned activations or logits in place changes nothing of the model or of later results."""
    names, inputs, backend = offered(bench), bench.even_inputs(), bench.backend

    def captured(*given: Any) -> tuple[None, Any]:
        return None, backend.capture(*given)

    runs: Mapping[str, Callable[..., tuple[Any, Any]]] = {"run_with_cache": backend.run_with_cache, "capture": captured}
    for what, run in runs.items():
        _, first = run(inputs, names)
        kept = {name: value.clone() for name, value in first.items()}
        clean = backend.run(inputs)
        kept_logits = clean.clone()
        for value in first.values():
            value.zero_()
        _, second = run(inputs, names)
        clean.zero_()
        for name in names:
            same(second[name], kept[name], f"activations at {name}, after those of an earlier {what} were set to 0")
        same(backend.run(inputs), kept_logits, f"logits, after results of an earlier {what} were set to 0")


@rule(stack=True, after=["cache-agrees"])
@torch.no_grad()
def edits_are_made(bench: Bench) -> None:
    """An edit at a canonical hook point changes the logits exactly as it changes those of the plain model."""
    clean, turned_at = bench.backend.forward(bench.even_inputs(), {}), logits_turned_at(bench)
    for name in offered(bench):
        found = bench.backend.forward(bench.even_inputs(), {name: turned})
        expect(
            not torch.allclose(found, clean, atol=1e-6), f"an edit at {name} changes no logit", "logits that it changes"
        )
        same(found, turned_at[name], f"logits with an edit at {name}")


@rule(stack=True, after=["cache-agrees"])
@torch.no_grad()
def edits_do_not_reach_back(bench: Bench) -> None:
    """An edit leaves what it was given, and everything that comes before it, as it was."""
    names = [name for name in offered(bench) if name != LOGITS]
    given: list[Tensor] = []

    def edit(activations: Tensor) -> Tensor:
        given[:] = [activations, activations.clone()]
        return torch.zeros_like(activations)

    _, clean = bench.backend.run_with_cache(bench.even_inputs(), names)
    for index in range(1, len(names)):
        point, below = names[index], names[:index]
        held: dict[str, Tensor] = {}
        keep = {name: holding(held, name) for name in below}
        bench.backend.forward(bench.even_inputs(), {**keep, point: edit})
        expect(torch.equal(*given), f"an edit at {point} changed in place what it was given", "a tensor left alone")
        for name in below:
            same(held[name], clean[name], f"activations at {name}, held in a forward with an edit at {point}")


@rule(stack=True, after=["edits-are-made"])
@torch.no_grad()
def nested_edits_add_up(bench: Bench) -> None:
    """Edits of a block, of the blocks around it and of a forward in it are all made, the outer ones first."""
    backend, inputs, names = bench.backend, bench.even_inputs(), offered(bench)
    turned_round = inputs.select(torch.tensor([1, 0], device=inputs.tokens.device))  # a batch that was not run before
    others = [names[(index + len(names) // 2) % len(names)] for index in range(len(names))]
    cases = [
        [(name, shrunk), *second]
        for name, other in zip(names, others, strict=True)
        for second in ([(name, turned)], [(other, turned)], [])
    ]
    wanted = edited_logits(bench, cases).unflatten(0, (len(names), 3))
    clean = reference.activations_of(bench.reference, bench.even_rows.flip(0), names)
    for name, other, (both, apart, one) in zip(names, others, wanted, strict=True):
        with backend.counted_hooks({name: shrunk}):
            same(
                backend.forward(inputs, {name: turned}), both, f"logits with an edit at {name} in a block with another"
            )
            same(
                backend.forward(inputs, {other: turned}), apart, f"logits with an edit at {other} in a block of {name}"
            )
            _, cache = backend.run_with_cache(turned_round, [name])
            with backend.counted_hooks({name: turned}):
                same(backend.forward(inputs, {}), both, f"logits in two blocks with edits at {name}")
            with backend.hooked({other: turned}):
                same(backend.forward(inputs, {}), apart, f"logits in a block of {other} in one of {name}")
            once = backend.forward(inputs, {})
        same(once, one, f"logits in a block with an edit at {name}, after inner ones")
        same(cache[name], shrunk(clean[name]), f"activations at {name} in a block with an edit there")
        alias = next(aliases(name), None)
        if alias is not None and name != LOGITS:
            found = backend.forward(inputs, {name: shrunk, alias: turned})
            same(found, both, f"logits with edits at {name} and at {alias}, the same hook point")


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
    """Compare names that are modules of the plain model with torch hooks there."""
    chosen = names_of_modules(plain, names)
    if not chosen:
        return
    found, wanted = edited_by(bench, backend, chosen), edited_in_modules(bench, plain, chosen)
    around = edited_in_modules(bench, plain, chosen, in_place=True)
    for i, name in enumerate(chosen):
        if name in wanted.given:
            expect(name in found.given, f"a forward does not come by {name}", "as the plain model does")
            same(found.given[name], wanted.given[name], f"activations at {name}, beside the plain model's")
        if not (found.agrees(wanted, i) or (name.endswith(IN) and found.agrees(around, i))):
            same(found.logits[i], wanted.logits[i], f"logits with an edit at {name}, beside the plain model's")


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

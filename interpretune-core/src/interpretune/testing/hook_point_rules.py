"""Rules of hook points: they exist, they fire, they do what they say, and nothing of them is left."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interpretune.analysis.hook_names import LOGITS, RESID_POST, aliases, in_layer
from interpretune.analysis.inputs import ModelInputs
from interpretune.declaration import Level
from interpretune.errors import HookPointError
from interpretune.testing import reference
from interpretune.testing.bench import Bench
from interpretune.testing.comparing import same
from interpretune.testing.model_hooks import hooks_on, left_behind
from interpretune.testing.places import names_of, offered
from interpretune.testing.rule import RuleBroken, expect, rule

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
        refused = [alias for alias in aliases(name) if not _known(bench.backend, alias)]
        expect(not refused, f"the backend refuses {_some(refused)}", f"aliases of {name}")


@rule()
def misspelt_names_refused(bench: Bench) -> None:
    """A hook point that does not exist is refused, with the nearest that do."""
    right = in_layer(0, RESID_POST)
    wrong = right.replace("post", "pots")
    try:
        bench.backend.run_with_cache(_even(bench), [wrong])
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
        bench.backend.run_model(_even(bench), None)
    excused = re.compile("|".join(bench.suite.conditional_hook_points) or "(?!)")
    silent = [name for name in names if name not in fired and not excused.fullmatch(name)]
    expect(not silent, f"{len(silent)} of {len(names)} listed hook points never fire: {_some(silent)}", "none")
    objects = [f"{name} ({kind})" for name, kind in fired.items() if kind]
    expect(not objects, f"edits get something else than tensors at {_some(objects)}", "tensors")


class _StopError(Exception):
    """Ends a forward in its middle."""


@rule(stack=True, after=["canonical-names-exist", "sessions-stay-apart"])
def errors_leave_no_hooks(bench: Bench) -> None:
    """An error in the middle of a forward arrives, and no hook stays on the model."""
    module = bench.new_session().module  # its own: what is left behind would spoil other rules
    module.backend.forward(_even(bench), {})  # libraries may add hooks of their own in the first forward
    names, before = offered(bench), hooks_on(module)

    def stop(activations: Tensor) -> Tensor:
        raise _StopError

    for name in (names[0], names[len(names) // 2], names[-1]):
        try:
            module.backend.forward(_even(bench), {name: stop})
        except _StopError:
            left = left_behind(before, module)
        else:
            raise RuleBroken(f"an error in an edit at {name} did not arrive", "the error, as it was raised")
        expect(not left, f"after an error in an edit at {name} there are still {left}", "none")


@rule(stack=True, after=["errors-leave-no-hooks", "logits-where-asked"])
@torch.no_grad()
def cache_agrees(bench: Bench) -> None:
    """Cached activations are those of the plain Hugging Face model at each canonical place."""
    names = offered(bench)
    wanted = [reference.activations_of(bench.reference, row, names) for row in bench.even_rows]
    logits, cache = bench.backend.run_with_cache(_even(bench), names)
    captured = bench.backend.capture(_even(bench), names)
    for name in names:
        expected = torch.stack([row[name] for row in wanted])
        same(cache.get(name), expected, f"activations at {name}")
        same(captured.get(name), expected, f"captured activations at {name}")
    answers = torch.stack([reference.logits_of(bench.reference, row)[-1] for row in bench.even_rows])
    same(logits, answers, "logits of a run with a cache")


@rule(stack=True, after=["cache-agrees"])
@torch.no_grad()
def cache_is_a_copy(bench: Bench) -> None:
    """Who changes returned activations or logits in place changes nothing of the model or of later results."""
    names, inputs, backend = offered(bench), _even(bench), bench.backend

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
    """An edit at a canonical place changes the logits exactly as it changes those of the plain model."""

    def edit(activations: Tensor) -> Tensor:
        turned = activations.clone()
        turned[:, 1::2] = 0.5 * activations[:, 1::2].flip(-1) + 0.1
        return turned

    clean = bench.backend.forward(_even(bench), {})
    for name in offered(bench):
        found = bench.backend.forward(_even(bench), {name: edit})
        wanted = [reference.logits_of(bench.reference, row, [(name, edit)]) for row in bench.even_rows]
        expect(
            not torch.allclose(found, clean, atol=1e-6), f"an edit at {name} changes no logit", "logits that it changes"
        )
        same(found, torch.stack(wanted), f"logits with an edit at {name}")


@rule(stack=True, after=["cache-agrees"])
@torch.no_grad()
def edits_do_not_reach_back(bench: Bench) -> None:
    """An edit leaves what it was given, and everything that comes before it, as it was."""
    names = [name for name in offered(bench) if name != LOGITS]
    given: list[Tensor] = []

    def edit(activations: Tensor) -> Tensor:
        given[:] = [activations, activations.clone()]
        return torch.zeros_like(activations)

    _, clean = bench.backend.run_with_cache(_even(bench), names)
    for index in range(1, len(names)):
        place, below = names[index], names[:index]
        held: dict[str, Tensor] = {}
        keep = {name: _hold(held, name) for name in below}
        bench.backend.forward(_even(bench), {**keep, place: edit})
        expect(torch.equal(*given), f"an edit at {place} changed in place what it was given", "a tensor left alone")
        for name in below:
            same(held[name], clean[name], f"activations at {name}, held in a forward with an edit at {place}")


def _hold(held: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    def hold(activations: Tensor) -> Tensor:
        held[name] = activations
        return activations

    return hold


def _even(bench: Bench) -> ModelInputs:
    return ModelInputs.from_batch(bench.even_batch())


def _known(backend: Any, name: str) -> bool:
    try:
        backend.check_hook_points([name])
    except HookPointError:
        return False
    return True


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"

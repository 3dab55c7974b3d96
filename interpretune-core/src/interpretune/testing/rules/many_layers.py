"""The rule of models of ten layers and more: the number of a layer is read to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.hook_names import RESID_POST, aliases, canonical_names, in_layer, split_layer
from interpretune.activations.inputs import ModelInputs
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.hook_points import dictionary, edited_logits, offered, offers, turned
from interpretune.testing.own_names import own_names
from interpretune.testing.reference import Hook
from interpretune.testing.rule import expect, rule
from interpretune.testing.rules.activations import check_modules
from interpretune.testing.workbench import Bench

TWINS = (1, 10, 11)
"""Layers whose numbers begin alike."""


@rule(stack=True, after=["edits-are-made"])
def layers_of_two_digits(bench: Bench) -> None:
    """In a model of twelve layers, layer 10 is not taken for layer 1, by any name, nor edited with it."""
    folder = bench.other_model("twelve layers", bench.suite.write_model_with_twelve_layers)
    plain = bench.suite.reference_model(folder)
    reference.kind_of(plain)
    backend = bench.new_session(model_folder=folder).module.backend
    names = _offered(bench, backend, plain)
    with torch.no_grad():
        _check_activations(bench, backend, plain, names)
        _check_edits(bench, backend, plain, names)
        check_modules(bench, backend, plain, [name for name in own_names(backend) if _is_twin(name)])
        if "splice" in bench.capabilities:
            _check_latent_models(bench, backend, plain)


def _offered(bench: Bench, backend: Any, plain: Any) -> list[str]:
    """Names of all hook points of the model that the backend offers of the small one, too."""
    small = set(offered(bench))
    names = []
    for name, point in canonical_names(reference.n_layers(plain)):
        if (name if split_layer(name) is None else in_layer(1, point.name)) in small:
            expect(offers(backend, name), f"a model of many layers has no {name}", "those of the smaller model")
            names.append(name)
    return names


def _check_activations(bench: Bench, backend: Any, plain: Any, names: Sequence[str]) -> None:
    wanted = reference.activations_of(plain, bench.even_rows, names)
    spelled = {name: name for name in names}
    spelled |= {alias: name for name in names for alias in aliases(name) if offers(backend, alias)}
    _, cache = backend.run_with_cache(bench.even_inputs(), list(spelled))
    for alias, name in spelled.items():
        same(cache.get(alias), wanted[name], f"activations at {alias} of a model of {reference.n_layers(plain)} layers")


def _check_edits(bench: Bench, backend: Any, plain: Any, names: Sequence[str]) -> None:
    twins = [name for name in names if (split_layer(name) or (None, ""))[0] in TWINS]
    wanted = dict(zip(twins, edited_logits(bench, [((name, turned),) for name in twins], plain), strict=True))
    for name, expected in wanted.items():
        found = backend.forward(bench.even_inputs(), {name: turned})
        same(found, expected, f"logits of a model of many layers with an edit at {name}")
    spelled = {alias: name for name in twins for alias in aliases(name) if offers(backend, alias)}
    together = ModelInputs.from_batch(bench.padded([*bench.even_rows] * len(spelled), "left"))
    logits = backend.forward(together, {alias: _turning(i, len(spelled)) for i, alias in enumerate(spelled)})
    for (alias, name), found in zip(spelled.items(), logits.chunk(len(spelled)), strict=True):
        same(found, wanted[name], f"logits of a model of many layers with an edit at {alias}")


def _turning(case: int, n: int) -> Hook:
    """An edit of the rows of one case of several in a batch."""

    def turn(activations: Tensor) -> Tensor:
        parts = list(activations.chunk(n))
        parts[case] = turned(parts[case])
        return torch.cat(parts)

    return turn


def _check_latent_models(bench: Bench, backend: Any, plain: Any) -> None:
    models = [dictionary(bench, in_layer(layer, RESID_POST), seed=layer) for layer in TWINS[:2]]
    runs = [reference.spliced_run(plain, models, row, bench.special) for row in bench.even_rows]
    wanted: Tensor = torch.stack([run[0] for run in runs])
    found = backend.run_spliced(bench.even_inputs(), models).answer_logits
    same(found, wanted, "logits with latent models after layers 1 and 10")


def _is_twin(name: str) -> bool:
    return any(part in map(str, TWINS) for part in name.replace(":", ".").split("."))

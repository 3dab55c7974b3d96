"""Units as a file says them: ``{neurons: 15}``, ``{heads: all}``, ``{vector: layers.3.mlp_out}``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from interpretune.errors import AnalysisError
from interpretune.latents.latent_model import LatentModel, activation_name
from interpretune.questions.units import Heads, Latents, Neurons, Vector

ALL = "all"
"""Stands for every layer, and for every latent model of the session."""
ONLY = "only"
"""Beside a kind: ids of some of its units."""
KINDS: Mapping[str, Callable[..., Any]] = {"neurons": Neurons, "heads": Heads, "latents": Latents, "vector": Vector}
"""What each kind becomes."""
EXAMPLES = (
    "{neurons: 15}, {heads: all}, {latents: all} or the name of a latent model, {vector: layers.3.mlp_out}; and beside "
    "these {only: [ids]}"
)


def written_units(written: Any, latent_models: Sequence[LatentModel]) -> list[Any]:
    """Units of what a file says, and units of code as they are.

    Args:
        written: A kind, for all that there are, or a mapping from it to layers, latent models or hook points, one or a
            list of them; or a list of such. Objects of code stay as they are.
        latent_models: Those of the session.

    Raises:
        AnalysisError: Something names no units.
    """
    items = list(written) if isinstance(written, list | tuple) else [written]
    found: list[Any] = []
    for item in items:
        said = {item: ALL} if isinstance(item, str) else item
        found += _units_of(said, latent_models) if isinstance(said, Mapping) else [said]
    return found


def _units_of(said: Mapping[Any, Any], latent_models: Sequence[LatentModel]) -> list[Any]:
    kinds = [name for name in said if name in KINDS]
    if len(kinds) != 1 or not said.keys() <= {*kinds, ONLY}:
        raise AnalysisError(f"units: {dict(said)} names no units. Units are {EXAMPLES}.")
    kind, which, only = str(kinds[0]), said[kinds[0]], said.get(ONLY)
    if only is not None and not (_is_id(only) or (isinstance(only, list | tuple) and all(map(_is_id, only)))):
        raise AnalysisError(f"units: {kind}: only is {only!r}; it takes ids, one or a list.")
    further = () if only is None else (only,)
    if which == ALL and kind in ("neurons", "heads"):
        return [KINDS[kind](None, *further)]
    chosen = list(which) if isinstance(which, list | tuple) else [which]
    if kind == "latents":
        models = [_model(name, latent_models) for name in chosen] if which != ALL else list(latent_models)
        if not models:
            raise AnalysisError("units: latents are asked for, and the session has no latent models. Give it some.")
        return [Latents(model, *further) for model in models]
    is_right: Callable[[Any], bool] = _is_id if kind != "vector" else lambda item: isinstance(item, str) and item != ALL
    if wrong := [item for item in chosen if not is_right(item)] or (kind == "vector" and further):
        raise AnalysisError(f"units: {kind} of {wrong!r}; there are no such. Units are {EXAMPLES}.")
    return [KINDS[kind](item, *further) for item in chosen]


def _is_id(value: object) -> bool:
    return type(value) is int


def _model(name: Any, latent_models: Sequence[LatentModel]) -> LatentModel:
    found = [item for item in latent_models if name in (item.name, activation_name(item))]
    if len(found) != 1:
        names = ", ".join(activation_name(item) for item in latent_models) or "none"
        raise AnalysisError(
            f"units: there {'are several latent models' if found else 'is no latent model'} {name!r}. The session has "
            f"{names}; name one by these, or say all."
        )
    return found[0]

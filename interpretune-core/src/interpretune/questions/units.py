"""Units: what is changed. Latents, MLP neurons, attention heads, or the whole vector at a hook point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from interpretune.activations.hook_names import ATTN_Z, IN_ATTENTION, MLP_ACT, canonical, in_layer, split_layer
from interpretune.activations.inputs import probe_inputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.errors import AnalysisError
from interpretune.hashing.content_hash import hash_of
from interpretune.latents.identity import IdentityDictionary
from interpretune.latents.latent_model import LatentModel, activation_name
from interpretune.models.attention_heads import number_of_heads


@frozen(eq=False)
class UnitSet:
    """Units of one dictionary: each is a set of its latents that are changed together.

    Attributes:
        name: For tables, such as ``layers.3.attn_z``.
        dictionary: The latent model; an ``IdentityDictionary`` where coordinates of a hook point are meant.
        ids: Id of each unit, ascending, ``[n]``: the latent, neuron or head.
        members: Latents of each unit, ``[n, k]``.
        size: Number of units that there are, chosen or not.
        kind: What a unit is called: ``latent``, ``neuron``, ``head``, ``vector``.
    """

    name: str
    dictionary: LatentModel
    ids: Tensor
    members: Tensor
    size: int
    kind: str

    @property
    def activation_name(self) -> str:
        """Name of the dictionary's activations."""
        return activation_name(self.dictionary)

    @property
    def told(self) -> dict[str, Any]:
        """What a manifest says of it."""
        about: dict[str, Any] = {"name": self.name, "kind": self.kind, "size": self.size, "chosen": len(self.ids)}
        if len(self.ids) < self.size:
            about["ids"] = hash_of(self.ids, f"The ids of {self.name}")
        return {**about, "activation": self.activation_name} if self.kind == "latent" else about


@runtime_checkable
class Units(Protocol):
    """A choice of units, which becomes unit sets at a model."""

    def at(self, backend: AnalysisBackend) -> Sequence[UnitSet]:
        """The unit sets in a model.

        Raises:
            AnalysisError: There are no such units; the message says which there are.
        """
        ...


def _as_ids(only: Any) -> tuple[int, ...] | None:
    given = only.tolist() if hasattr(only, "tolist") else only
    ids = given if given is None or isinstance(given, Iterable) else [given]
    if ids is None:
        return None
    ids = tuple(ids)
    if any(type(item) is not int for item in ids):
        raise AnalysisError(f"Units are chosen by whole numbers, one or several; only is {given!r}.")
    return ids


@frozen
class Latents:
    """Latents of a dictionary.

    Attributes:
        latent_model: An SAE, a transcoder, or any other dictionary.
        only: Ids; None: all.
    """

    latent_model: LatentModel
    only: Sequence[int] | None = field(default=None, converter=_as_ids)

    def at(self, backend: AnalysisBackend) -> Sequence[UnitSet]:
        """See ``Units.at``."""
        model = self.latent_model
        backend.check_latent_models([model])
        ids = _chosen(self.only, model.d_sae, "latent", f"The dictionary {model.name!r}")
        return [UnitSet(model.name, model, ids, ids.unsqueeze(-1), model.d_sae, "latent")]


@frozen
class Neurons:
    """Neurons of MLPs: the hidden activations after the non-linearity.

    Attributes:
        layer: The block; None: every block.
        only: Ids in each block; None: all.
    """

    layer: int | None = None
    only: Sequence[int] | None = field(default=None, converter=_as_ids)

    def at(self, backend: AnalysisBackend) -> Sequence[UnitSet]:
        """See ``Units.at``."""
        found = []
        for name, width in _widths(backend, MLP_ACT, self.layer, "neurons").items():
            ids = _chosen(self.only, width, "neuron", name)
            found.append(UnitSet(name, IdentityDictionary(name, width), ids, ids.unsqueeze(-1), width, "neuron"))
        return found


@frozen
class Heads:
    """Attention heads: the output of each before the projection, its coordinates set together.

    Attributes:
        layer: The block; None: every block.
        only: Ids in each block; None: all.
    """

    layer: int | None = None
    only: Sequence[int] | None = field(default=None, converter=_as_ids)

    def at(self, backend: AnalysisBackend) -> Sequence[UnitSet]:
        """See ``Units.at``."""
        found = []
        for name, width in _widths(backend, ATTN_Z, self.layer, "heads").items():
            n_heads = heads_of(backend)
            if width % n_heads:
                raise AnalysisError(
                    f"{name} has {width} coordinates, which {n_heads} heads do not share evenly: which belong to a "
                    "head is unknown. Ask for the whole vector there: Vector(hook_point)."
                )
            ids = _chosen(self.only, n_heads, "head", name)
            members = torch.arange(width).reshape(n_heads, -1)[ids]
            found.append(UnitSet(name, IdentityDictionary(name, width), ids, members, n_heads, "head"))
        return found


@frozen
class Vector:
    """The whole vector at a hook point: what a sublayer adds, or the residual stream.

    Attributes:
        hook_point: Such as ``layers.3.attn_out``, ``layers.3.mlp_out`` or ``layers.3.resid_post``.
    """

    hook_point: str

    def at(self, backend: AnalysisBackend) -> Sequence[UnitSet]:
        """See ``Units.at``."""
        name = canonical(self.hook_point)
        if (split_layer(name) or (0, ""))[1] in IN_ATTENTION:
            raise AnalysisError(
                f"{name} is no vector of a token that runs alone, but inside attention. Ask for Heads, or change it "
                "with an intervention."
            )
        width = _widths_at(backend, [name])[name]
        members = torch.arange(width).unsqueeze(0)
        return [UnitSet(name, IdentityDictionary(name, width), torch.zeros(1, dtype=torch.long), members, 1, "vector")]


def unit_sets(units: object, backend: AnalysisBackend) -> list[UnitSet]:
    """The unit sets of one or several choices of units; a latent model stands for all its latents.

    Raises:
        AnalysisError: Something is no choice of units, there are no such units, or units are named twice.
        HookPointError: A latent model does not fit the model.
    """
    given = list(units) if isinstance(units, (list, tuple)) else [units]
    found: list[UnitSet] = []
    for item in given:
        choice = Latents(item) if isinstance(item, LatentModel) and not isinstance(item, Units) else item
        if not isinstance(choice, Units) or isinstance(choice, type):
            told = f"The class {item.__name__}" if isinstance(item, type) else f"A {type(item).__name__}"
            raise AnalysisError(
                f"{told} is no choice of units. Give latent models, Latents(...), Neurons(...), "
                "Heads(...) or Vector(...), one or a list."
            )
        found += choice.at(backend)
    if not found:
        raise AnalysisError("There are no units to change: units is an empty list.")
    names = [item.name for item in found]
    if len(set(names)) < len(names):  # dictionaries need no names of their own
        found = [evolve(item, name=item.activation_name) if item.kind == "latent" else item for item in found]
        names = [item.name for item in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise AnalysisError(f"Units of {', '.join(twice)} are named twice; name each dictionary or hook point once.")
    return found


def heads_of(backend: AnalysisBackend) -> int:
    """Number of query heads of a block.

    Raises:
        AnalysisError: The model's configuration does not say.
    """
    if (number := number_of_heads(backend.model)) is None:
        raise AnalysisError(
            f"The configuration of {type(backend.model).__name__} does not say how many attention heads a block has."
        )
    return number


def _chosen(only: Sequence[int] | None, size: int, kind: str, where: str) -> Tensor:
    ids = range(size) if only is None else sorted(only)
    if bad := [item for item in ids if not 0 <= item < size]:
        raise AnalysisError(
            f"{where} has {size} {kind}s, from 0 to {size - 1}; there is no {kind} {bad[0]}. Ask for one that is."
        )
    if not ids or len(set(ids)) < len(ids):
        raise AnalysisError(f"{kind}s of {where}: {list(ids)} names none, or one twice.")
    return torch.tensor(list(ids))


def _widths(backend: AnalysisBackend, part: str, layer: int | None, kind: str) -> dict[str, int]:
    """Width of a hook point of one block or of all, by canonical name."""
    there = {canonical(name) for name in backend.hook_point_names()}
    layers = [i for i in range(len(there)) if in_layer(i, part) in there]
    wanted = layers if layer is None else [layer]
    if layer not in (None, *layers) or not layers:
        shown = f"the layers {layers[0]} to {layers[-1]}" if layers else "no layer"
        raise AnalysisError(
            f"There are no {kind} of layer {layer}: {type(backend).__name__} has {part} of {shown}; take one."
            if layer is not None
            else f"There are no {kind}: {type(backend).__name__} has {part} of no layer."
        )
    names = [in_layer(i, part) for i in wanted]
    return _widths_at(backend, names)


def _widths_at(backend: AnalysisBackend, names: Sequence[str]) -> dict[str, int]:
    """Width of hook points, by name, from a forward of a few tokens."""
    backend.check_hook_points(names)
    seen = backend.capture(probe_inputs(backend.model_device), names)
    return {name: seen[name].flatten(2).shape[-1] for name in names}

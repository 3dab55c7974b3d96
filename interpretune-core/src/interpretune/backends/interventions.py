"""Changes of activations and latents at named hook points and positions, in a forward and during generation.

An intervention names a hook point or the activations of a latent model. The names are the same for all backends that
have the hook point.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from attrs import field, frozen
from torch import Tensor

from interpretune.activations.edits import Edit
from interpretune.activations.hook_names import canonical
from interpretune.activations.inputs import ModelInputs, Points
from interpretune.activations.sequence_slots import SequenceSlots
from interpretune.backends.backend import AnalysisBackend
from interpretune.errors import AnalysisError, HookPointError
from interpretune.latents.latent_model import LatentModel, activation_name
from interpretune.latents.splicing import RunsEdits, Splice, WhichSlots
from interpretune.models.padding import ATTENTION_MASK, mask_of, pad_left, tokens_of
from interpretune.system.model_lock import model_lock

Where = Literal["all", "answer", "prompt", "generated"]


@frozen(eq=False, kw_only=True)
class Intervention(ABC):
    """A change at one hook point.

    Attributes:
        at: A hook point, or the activation name of a spliced latent model.
        positions: ``all`` real tokens, the ``answer`` position (the last token of the prompt), the ``prompt``, what is
            ``generated`` after it, one position for each row ``[batch]``, or a mask ``[batch, pos]``, bool, over the
            prompt. They mean the same tokens with and without a cache.
        latents: Entries of the last dimension to change, ``[k]``; None: all.
    """

    at: str
    positions: Where | Tensor = "all"
    latents: Sequence[int] | Tensor | None = None

    @abstractmethod
    def change(self, values: Tensor, where: Points) -> Tensor:
        """New values.

        Args:
            values: ``[n, d]``, heads flattened, or ``[n, k]`` where latents were chosen.
            where: Example and position of each row; several rows have the same example if it is generated from
                several times.
        """


@frozen(eq=False, kw_only=True)
class SetTo(Intervention):
    """Set to a value: a number, or a vector ``[d]``."""

    value: float | Tensor

    def change(self, values: Tensor, where: Points) -> Tensor:
        """The value."""
        return _vector(self, self.value, values).expand_as(values)


@frozen(eq=False, kw_only=True)
class Add(Intervention):
    """Add a vector ``[d]`` (or a number), ``scale`` times: steering."""

    value: float | Tensor
    scale: float = 1.0

    def change(self, values: Tensor, where: Points) -> Tensor:
        """The values and the scaled vector."""
        return values + self.scale * _vector(self, self.value, values)


@frozen(eq=False, kw_only=True)
class Scale(Intervention):
    """Multiply; 0 ablates."""

    factor: float

    def change(self, values: Tensor, where: Points) -> Tensor:
        """The scaled values."""
        return self.factor * values


@frozen(eq=False, kw_only=True)
class ProjectOut(Intervention):
    """Remove the part along a direction ``[d]``: ``x - (x . d) d / |d|^2``."""

    direction: Tensor

    def change(self, values: Tensor, where: Points) -> Tensor:
        """The values without their part along the direction."""
        along = _vector(self, self.direction, values)
        if not (size := along.square().sum()) > 0:
            raise AnalysisError(f"The direction to project out at {self.at} is zero.")
        return values - (values @ along).unsqueeze(-1) * along / size


@frozen(eq=False, kw_only=True)
class Patch(Intervention):
    """Set to the activations of another run, at the same examples and positions.

    Attributes:
        source: Activations of that run, ``[batch, pos, ...]``, for example from ``run_with_cache``.
    """

    source: Tensor = field()

    def change(self, values: Tensor, where: Points) -> Tensor:
        """The other run's values."""
        flat = self.source.flatten(2)
        if where.examples.numel() and (
            int(where.examples.max()) >= flat.shape[0] or int(where.positions.max()) >= flat.shape[1]
        ):
            raise AnalysisError(
                f"The source of a patch at {self.at} is {tuple(self.source.shape)}; it has no example "
                f"{int(where.examples.max())} or no position {int(where.positions.max())}. Patch from a run of a batch "
                "of the same shape, or name positions that both have."
            )
        taken = where.of(flat).to(values)
        return taken if self.latents is None else taken[:, _ids(self.latents, taken.device)]


def run_with_interventions(
    backend: AnalysisBackend,
    inputs: ModelInputs,
    interventions: Sequence[Intervention],
    latent_models: Sequence[LatentModel] = (),
    points: Points | None = None,
) -> Tensor:
    """One forward with changes, made in the given order at each hook point.

    Args:
        backend: Runs the model.
        inputs: The batch.
        interventions: The changes. At a hook point they come before what a latent model reads there.
        latent_models: Spliced in.
        points: Where logits are wanted; None: the answer positions.

    Returns:
        Logits ``[n, vocab]``.

    Raises:
        HookPointError: A name is neither a hook point nor the activations of a spliced latent model.
        AnalysisError: Positions or values do not fit.
    """
    wanted = inputs.answers if points is None else points

    def run(edits: dict[str, Edit]) -> Tensor:
        return backend.forward(inputs, edits, wanted)

    return run(intervention_edits(backend, SequenceSlots(inputs), interventions, latent_models, run))


@contextmanager
def interventions_in_place(
    backend: AnalysisBackend,
    inputs: ModelInputs,
    interventions: Sequence[Intervention],
    latent_models: Sequence[LatentModel] = (),
) -> Iterator[None]:
    """Make changes in every forward inside a block, for example in the user's own generation loop.

    The loop may call the model with whole sequences or with a cache, generate several times, and repeat each row of the
    batch ``n`` times in a row (beams, several sequences): row ``r`` is then example ``r // n``.

    Only forwards of the thread and context (asyncio task) of the block are changed; see "Threads" in the documentation.
    The block does not hold the lock of the model.

    Args:
        backend: Runs the model.
        inputs: The prompts as the model sees them (generation pads on the left).
        interventions: The changes.
        latent_models: Spliced in.

    Raises:
        AnalysisError: A forward has other rows than the batch, or it is unknown which tokens it has.
    """
    slots = SequenceSlots(inputs)
    with (
        backend.blind_tokens_attend(inputs),
        slots.watch(backend.called_models(), backend.slots_cached),
        backend.counted_hooks(intervention_edits(backend, slots, interventions, latent_models)),
    ):
        yield


def generate_with_interventions(
    backend: AnalysisBackend,
    generate: Callable[..., Any],
    batch: Mapping[str, Any],
    interventions: Sequence[Intervention],
    latent_models: Sequence[LatentModel] = (),
    **generation_kwargs: Any,
) -> Any:
    """Generate with changes: steering.

    Args:
        backend: Of the model that generates; in a session, ``module.backend``.
        generate: Called with the batch, padded on the left, and ``generation_kwargs``; in a session,
            ``module.it_generate``; of a model alone, ``lambda batch, **options: model.generate(**batch, **options)``.
        batch: Prompts with their attention mask; positions refer to them padded on the left.
        interventions: The changes.
        latent_models: Spliced in, for example ``module.latent_models``.
        **generation_kwargs: Options of generation.

    Raises:
        AnalysisError: ``guidance_scale`` is given: it runs a second prompt, to which positions do not refer.
    """
    own = getattr(backend.model, "generation_config", None)
    scale = generation_kwargs.get("guidance_scale", getattr(own, "guidance_scale", None))
    if scale not in (None, 1, 1.0):
        raise AnalysisError(
            f"guidance_scale is {scale}: generation then runs another prompt beside each prompt, in forwards of its "
            "own, and the positions of interventions mean tokens of the prompt. Generate without it."
        )
    name, tokens = tokens_of(batch)
    tokens, mask = pad_left(tokens, mask_of(batch))
    inputs = ModelInputs(tokens, mask)
    with model_lock(backend.model), interventions_in_place(backend, inputs, interventions, latent_models):
        return generate({**batch, name: tokens, ATTENTION_MASK: mask}, **generation_kwargs)


def intervention_edits(
    backend: AnalysisBackend,
    slots: SequenceSlots,
    interventions: Sequence[Intervention],
    latent_models: Sequence[LatentModel],
    run: RunsEdits | None = None,
) -> dict[str, Edit]:
    """Edits that make the changes, by hook point; for ``run``, see ``AnalysisBackend.chain``."""
    models = {activation_name(item): item for item in latent_models}
    latent_edits: dict[str, list[Intervention]] = {}
    point_edits: dict[str, list[Intervention]] = {}
    for item in interventions:
        if item.at in models:
            latent_edits.setdefault(item.at, []).append(item)
        else:
            point_edits.setdefault(canonical(item.at), []).append(item)
    try:
        backend.check_hook_points([item.at for item in interventions if item.at not in models])
    except HookPointError as error:
        spliced = f" Spliced latent activations: {', '.join(models)}." if models else ""
        raise HookPointError(f"{error}{spliced}") from None
    for name, items in latent_edits.items():
        for item in items:
            _check_latents(item, models[name].d_sae)
    splices = [
        Splice(
            model,
            untouched=_untouched(backend, model, slots),
            edit=_edit(backend, model.hook_point, latent_edits[name], slots) if name in latent_edits else None,
        )
        for name, model in models.items()
    ]
    first = {name: _edit(backend, name, items, slots) for name, items in point_edits.items()}
    return backend.chain(splices, first, run)


def _untouched(backend: AnalysisBackend, model: LatentModel, slots: SequenceSlots) -> Tensor | WhichSlots | None:
    """Positions that a latent model leaves unchanged; generated tokens are never among them."""
    untouched = backend.untouched_by(model, slots.inputs)
    if untouched is None or not slots.watched:
        return untouched
    kept = backend.sees_kept_positions_only(backend.resolve_hook_point(model.hook_point))
    return lambda rows, length: slots.here(untouched, rows, length, later=False, kept=kept)


def _edit(
    backend: AnalysisBackend, hook_point: str, interventions: Sequence[Intervention], slots: SequenceSlots
) -> Callable[[Tensor], Tensor]:
    kept = backend.sees_kept_positions_only(backend.resolve_hook_point(hook_point))
    changed_at = [_changed_positions(item.positions, slots.inputs) for item in interventions]

    def apply(activations: Tensor) -> Tensor:
        flat = activations.flatten(2).clone()
        rows, length = flat.shape[:2]
        repeats, numbers = slots.repeats(rows), slots.numbers(length, kept=kept)
        for item, (prompt, later) in zip(interventions, changed_at, strict=True):
            row, column = slots.here(prompt, rows, length, later=later, kept=kept).nonzero().unbind(-1)
            where = Points(row // repeats, numbers[column])
            values = flat[row, column]
            if item.latents is None:
                flat[row, column] = _fitting(item, item.change(values, where), values)
                continue
            _check_latents(item, flat.shape[-1])
            ids = _ids(item.latents, flat.device)
            changed = _fitting(item, item.change(values[:, ids], where), values[:, ids])
            flat[row.unsqueeze(-1), column.unsqueeze(-1), ids] = changed
        return flat.reshape(activations.shape)

    return apply


def _changed_positions(positions: Where | Tensor, inputs: ModelInputs) -> tuple[Tensor, bool]:
    """Where something changes: in the prompts, ``[batch, pos]``, bool, and whether in all tokens after them."""
    mask = inputs.attention_mask.bool()
    if isinstance(positions, Tensor):
        return _named(positions.to(mask.device), mask), False
    if positions in ("all", "prompt"):
        return mask, positions == "all"
    wanted = torch.zeros_like(mask)
    if positions == "answer":
        wanted[inputs.answers.examples, inputs.answers.positions] = True
    return wanted, positions == "generated"


def _named(positions: Tensor, mask: Tensor) -> Tensor:
    if positions.dtype == torch.bool and positions.shape == mask.shape:
        return positions
    if positions.dtype == torch.bool or positions.shape != mask.shape[:1]:
        raise AnalysisError(
            f"Positions of an intervention have shape {tuple(positions.shape)}; expected one position for each of "
            f"{len(mask)} rows, or a bool mask {tuple(mask.shape)}."
        )
    if positions.min() < 0 or positions.max() >= mask.shape[1]:
        raise AnalysisError(f"Positions {positions.tolist()} go beyond the {mask.shape[1]} slots of the batch.")
    wanted = torch.zeros_like(mask)
    wanted[torch.arange(len(mask), device=mask.device), positions] = True
    return wanted


def _vector(item: Intervention, value: float | Tensor, values: Tensor) -> Tensor:
    """A number or a vector ``[d]``, with the dtype and device of the values it changes."""
    vector = torch.as_tensor(value, dtype=values.dtype, device=values.device)
    if vector.ndim and vector.shape != values.shape[-1:]:
        raise AnalysisError(
            f"{type(item).__name__} at {item.at} has a value of shape {tuple(vector.shape)}; expected a number or "
            f"[{values.shape[-1]}]."
        )
    return vector


def _fitting(item: Intervention, changed: Tensor, values: Tensor) -> Tensor:
    if changed.shape != values.shape:
        raise AnalysisError(
            f"{type(item).__name__} at {item.at} gave values of shape {tuple(changed.shape)}; expected "
            f"{tuple(values.shape)}: [changed tokens, width]."
        )
    return changed


def _check_latents(item: Intervention, width: int) -> None:
    if item.latents is None:
        return
    ids = _ids(item.latents, torch.device("cpu"))
    if len(ids) and (ids.min() < 0 or ids.max() >= width):
        raise AnalysisError(
            f"{type(item).__name__} at {item.at} names entries {ids.tolist()}; there are {width}, counted from 0."
        )


def _ids(latents: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    return torch.as_tensor(latents, dtype=torch.long, device=device)

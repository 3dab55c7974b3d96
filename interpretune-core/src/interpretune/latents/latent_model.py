"""What core needs of a latent model: a sparse autoencoder, a transcoder, or any other dictionary."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeGuard, cast, runtime_checkable

import torch
from torch import Tensor

from interpretune.activations.hook_names import canonical
from interpretune.errors import LatentModelError

ACTIVATION_HOOK = "hook_sae_acts_post"
"""Last part of the name of a latent model's activations."""


@runtime_checkable
class LatentModel(Protocol):
    """A dictionary of latents at a hook point of a model; plain attributes work as the properties."""

    @property
    def name(self) -> str:
        """Name for tables and plots."""

    @property
    def hook_point(self) -> str:
        """Hook point it reads, for example ``blocks.9.hook_resid_post``."""

    @property
    def output_hook_point(self) -> str:
        """Hook point it writes: the same for an autoencoder, another for a transcoder."""

    @property
    def d_in(self) -> int:
        """Width of the input; hook points with several trailing dimensions (heads) are flattened to it."""

    @property
    def d_sae(self) -> int:
        """Number of latents."""

    @property
    def skips_special_tokens(self) -> bool:
        """Whether the first token of a row, special tokens and padding are left unchanged.

        The answer position is always spliced.
        """

    def encode(self, activations: Tensor) -> Tensor:
        """Activations of the latents, ``[batch, pos, d_in]`` to ``[batch, pos, d_sae]``; inactive latents are 0."""

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction, ``[batch, pos, d_sae]`` to ``[batch, pos, d_out]``.

        May be called more than once after one ``encode``, with latents of the same tokens.
        """

    def dashboard_url(self) -> str | None:
        """Address of a page for each latent, with the placeholder ``{latent}``, if one is published."""


@runtime_checkable
class HasHookPoints(Protocol):
    """Optional for a latent model: that it reads or writes at several hook points, as crosscoders do.

    ``encode`` gets the activations of all ``hook_points`` side by side, ``[batch, pos, d_in]``, and ``decode`` returns
    what is written at all ``output_hook_points`` side by side, ``[batch, pos, d_out]``. ``decoder_rows``, likewise,
    gives ``[n, d_out]``.

    One that reads at several is encoded in a run in which it writes nothing. A cross-layer transcoder is one latent
    model for each layer at which it reads: what they write at a hook point is summed.
    """

    @property
    def hook_points(self) -> Sequence[str]:
        """Hook points it reads, in the order of their activations in ``encode``; the first is ``hook_point``."""

    @property
    def output_hook_points(self) -> Sequence[str]:
        """Hook points it writes, in the order in which a model reaches them; the first is ``output_hook_point``."""


@runtime_checkable
class HasAlias(Protocol):
    """Optional for a latent model: its name among several that read at one hook point.

    Its activations are then called ``{hook_point}.{alias}.hook_sae_acts_post``. Without error terms, autoencoders at
    one hook point replace it in turn, in their order: each reads what the one before has written.
    """

    @property
    def alias(self) -> str | None:
        """A letter, and then letters, digits, ``_`` and ``-``; None: it is alone there."""


@runtime_checkable
class HasSkipConnection(Protocol):
    """Optional for a latent model: that its decoder also reads what it encoded, as that of a skip transcoder does.

    Whatever the inputs give belongs to no latent: it stays as it is when a latent is changed. ``decoder_rows`` says
    what latents write, and nothing of the inputs.
    """

    @property
    def has_skip_connection(self) -> bool:
        """Whether ``decode`` wants inputs; if not, it is called with latents alone."""

    def decode(self, latents: Tensor, inputs: Tensor) -> Tensor:
        """Reconstruction, ``[batch, pos, d_sae]`` to ``[batch, pos, d_out]``.

        Args:
            latents: Changed or not.
            inputs: The activations that were encoded, ``[batch, pos, d_in]``, with gradient where there is one.
        """


@runtime_checkable
class HasTrainingLoss(Protocol):
    """Optional for a latent model: its own loss for training in a session."""

    def training_loss(self, activations: Tensor, targets: Tensor, step: int) -> Mapping[str, Tensor] | None:
        """Terms of the loss by name; their sum is minimised.

        Args:
            activations: At the input's hook point, ``[n, d_in]``, without gradient.
            targets: At the output's hook point, ``[n, d_out]``; the same for an autoencoder.
            step: Optimizer steps done, for coefficients with a warm-up.

        Returns:
            Scalars; None: use the module's loss.
        """


@runtime_checkable
class HasTrainingRule(Protocol):
    """Optional for a latent model: a training rule that differs from ``encode``, for reports.

    ``encode`` gives the latents of each token independently of the others. A rule that looks at all tokens of a batch
    together (BatchTopK) belongs here.
    """

    def encode_in_training(self, activations: Tensor) -> Tensor | None:
        """Latents by the training rule, ``[batch, pos, d_in]`` to ``[batch, pos, d_sae]``; None: ``encode``."""


@runtime_checkable
class HasDecoderNorms(Protocol):
    """Optional for a latent model: the sizes of what its latents write, to weight a sparsity penalty."""

    def decoder_norms(self) -> Tensor:
        """Norm of what each latent writes for an activation of 1, ``[d_sae]``, with gradient."""


@runtime_checkable
class HasDecoderRows(Protocol):
    """Optional for a latent model: the declaration that its decoder is linear.

    Then ablating a latent changes the output by ``-activation x decoder row``, and nothing is decoded again.
    """

    def decoder_rows(self, latents: Tensor) -> Tensor | None:
        """What each of the given latents writes for an activation of 1, ``[n]`` to ``[n, d_out]``.

        None if the decoder is not linear as configured, for example because it undoes a normalisation.
        """


@runtime_checkable
class HasPassingState(Protocol):
    """Optional for a latent model: the attributes that ``encode`` only sets for ``decode``.

    Everything else that a latent model and its parts hold counts as a setting: if it changes, results are computed
    again. A latent model that knows better can say so itself (``HasIdentity``).
    """

    @property
    def passing_state(self) -> Collection[str]:
        """Names of attributes, of the latent model and its parts, that change while it runs and are not settings."""


@runtime_checkable
class HasSave(Protocol):
    """Optional for a latent model: its own file format.

    The method is not called ``save``, because some libraries add a ``save`` to every object of a process.
    """

    def save_to(self, folder: Path) -> None:
        """Write everything needed to load it again into a folder."""


def has_error_term(latent_model: LatentModel) -> bool:
    """Whether what the latent model does not reconstruct is added to its output (attribute ``use_error_term``)."""
    return bool(getattr(latent_model, "use_error_term", False))


def _has_hook_points(latent_model: LatentModel) -> TypeGuard[HasHookPoints]:
    """What ``isinstance`` says, which takes ten times as long: replays ask at every block."""
    return hasattr(latent_model, "hook_points") and hasattr(latent_model, "output_hook_points")


def has_skip_connection(latent_model: LatentModel) -> bool:
    """Whether the decoder reads what was encoded (``HasSkipConnection``)."""
    return bool(getattr(latent_model, "has_skip_connection", False))


def reconstruct(latent_model: LatentModel, latents: Tensor, inputs: Tensor) -> Tensor:
    """What a latent model makes of latents, whether or not its decoder reads what was encoded.

    Args:
        latent_model: The latent model.
        latents: ``[batch, pos, d_sae]``.
        inputs: The activations that were encoded, ``[batch, pos, d_in]``.

    Returns:
        ``[batch, pos, d_out]``.
    """
    if has_skip_connection(latent_model):
        return cast(HasSkipConnection, latent_model).decode(latents, inputs)
    return latent_model.decode(latents)


def read_points(latent_model: LatentModel) -> tuple[str, ...]:
    """The hook points it reads, of most latent models one."""
    if _has_hook_points(latent_model):
        return tuple(latent_model.hook_points)
    return (latent_model.hook_point,)


def written_points(latent_model: LatentModel) -> tuple[str, ...]:
    """The hook points it writes, of most latent models one."""
    if _has_hook_points(latent_model):
        return tuple(latent_model.output_hook_points)
    return (latent_model.output_hook_point,)


def side_by_side(activations: Mapping[str, Tensor], hook_points: Sequence[str]) -> Tensor:
    """Activations ``[batch, pos, ...]`` at hook points, as a latent model encodes them, ``[batch, pos, d]``."""
    parts = [activations[name].flatten(2) for name in hook_points]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def summed(latent_models: Iterable[LatentModel]) -> list[LatentModel]:
    """Those whose output is summed with that of others, such as the parts of a cross-layer transcoder."""
    models = list(latent_models)
    writes = [set(map(canonical, written_points(item))) - set(map(canonical, read_points(item))) for item in models]
    return [
        item for i, item in enumerate(models) if any(writes[i] & others for j, others in enumerate(writes) if j != i)
    ]


def alias_of(latent_model: LatentModel) -> str:
    """Its name among those that read at one hook point (``HasAlias``), or nothing.

    Raises:
        LatentModelError: It is none that can be a part of a name.
    """
    alias = getattr(latent_model, "alias", None) or ""
    if alias and not (isinstance(alias, str) and re.fullmatch(r"[A-Za-z][\w-]*", alias)):
        raise LatentModelError(
            f"The alias of the latent model {latent_model.name!r} is {alias!r}. It becomes a part of the name of its "
            "activations: give a letter, and then letters, digits, '_' and '-'."
        )
    return alias


def own_name(latent_model: LatentModel) -> str:
    """Its (first) hook point, and its alias if it has one."""
    alias = alias_of(latent_model)
    return f"{latent_model.hook_point}.{alias}" if alias else latent_model.hook_point


def activation_name(latent_model: LatentModel) -> str:
    """Name of a latent model's activations: its (first) hook point, its alias, and ``hook_sae_acts_post``.

    Raises:
        LatentModelError: The alias is none.
    """
    return f"{own_name(latent_model)}.{ACTIVATION_HOOK}"


def layer_of(hook_name: str) -> int | None:
    """The layer in a hook name, its first number between dots."""
    found = re.search(r"\.(\d+)(?=\.|$)", hook_name)
    return int(found.group(1)) if found else None

"""A model whose activations can be edited at named hook points: what an adapter supplies, and how it runs.

An adapter supplies four things: the names of the hook points, hooks that edit activations there, a forward, and the
special tokens. Plain runs, captures and the resolution of names (``interpretune.activations.hook_names``) are written
here once, on top of those. Nothing here knows about latent models.

This module also makes runs safe for threads: every run holds the lock of the model, and edits act only for the thread
and context that asked for them, whatever an adapter puts on the model to make them.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpretune.activations.attention_patterns import patterns_as_named
from interpretune.activations.block_parts import CHECKED, expected_at, parts_as_named
from interpretune.activations.eager import fullgraph_told, run_eagerly
from interpretune.activations.edits import Edit, at_home, in_turn
from interpretune.activations.finite import check_logits
from interpretune.activations.hook_names import (
    ATTN_PATTERN,
    ATTN_Z,
    HEAD_INPUTS,
    IN_ATTENTION,
    LOGITS,
    aliases,
    canonical,
    in_layer,
    split_layer,
)
from interpretune.activations.inputs import ModelInputs, Points
from interpretune.activations.longest_row import follows_longest_row
from interpretune.activations.sequence_slots import slots_in_cache
from interpretune.errors import HookPointError, ReplayRefusedError
from interpretune.hashing.object_state import passing_of
from interpretune.system.model_lock import model_lock
from interpretune.system.own_context import OwnContext
from interpretune.system.placement import input_device

if TYPE_CHECKING:
    from interpretune.replay.engine import ReplayEngine


class AllCaptured(Exception):  # noqa: N818 - it ends a forward early and never leaves this package
    """Raised inside a forward when nothing after this point is wanted."""


def noted_last(seen: list[Tensor]) -> Callable[[Tensor], NoReturn]:
    """An edit or observer that records the activations and ends the forward with ``AllCaptured``."""

    def stop(activations: Tensor) -> NoReturn:
        seen.append(activations)
        raise AllCaptured

    return stop


Hooked = Callable[[Any, Mapping[str, Edit]], AbstractContextManager[Any]]
"""The method ``hooked`` of a class."""


class HookedModel(ABC):
    """Runs a model with edits at named hook points.

    Attributes:
        passing_model_state: Attributes of the model's parts that forwards set and no result depends on, and names of
            functions that its library adds as hooks.
        passing_model_library: Top-level package of that library; for other objects and functions everything counts.
            None: ``passing_model_state`` applies to all of the model.
        passing_state: The backend's own attributes that follow from its class and model, or that runs change.
    """

    passing_model_state: ClassVar[frozenset[str]] = frozenset()
    passing_model_library: ClassVar[str | None] = None
    passing_state: ClassVar[frozenset[str]] = frozenset()

    def identity(self) -> Any:
        """What results depend on besides class and model: every attribute that no class lists in ``passing_state``."""
        classes = type(self).__mro__
        passing = passing_of(type(self))
        derived = {
            name
            for kind in classes
            for name, value in vars(kind).items()
            if isinstance(value, functools.cached_property)
        }
        return {
            name: value
            for name, value in sorted(vars(self).items())
            if name not in passing | derived and value is not self.model
        }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the ``hooked`` of a class apply edits for its caller alone."""
        super().__init_subclass__(**kwargs)
        if "hooked" in vars(cls):
            cls.hooked = _for_caller_alone(cls.hooked)  # type: ignore[assignment,method-assign]

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of logits at each position."""

    @abstractmethod
    def hook_point_names(self) -> Sequence[str]:
        """Names of all hook points: the canonical names that the model has, then the backend's own names."""

    def pattern_names(self) -> Sequence[str]:
        """Names of attention patterns that edits reach, ``layers.{i}.attn_pattern``: ``[batch, query, n_heads, key]``.

        None, unless a backend has them; a forward proves them when one is first asked for.
        """
        return ()

    def head_input_names(self) -> Sequence[str]:
        """Names of queries, keys and values that edits reach head by head, such as ``layers.{i}.attn_q``.

        None, unless a backend computes ``attn_pattern`` from them, with which they are proved.
        """
        return ()

    @abstractmethod
    def special_token_ids(self) -> Tensor:
        """Ids of special tokens, ``[n]``, on the model's device."""

    @abstractmethod
    def hooked(self, edits: Mapping[str, Edit]) -> AbstractContextManager[Any]:
        """Apply each edit at its hook point in every forward of a block; no hook stays on the model afterwards.

        Edits get activations on ``model_device``, wherever the block is, and what they return is moved to the block.

        At canonical names, edits receive and return ``[batch, pos, width]``. At ``resid_mid``, what they return
        continues in the residual stream too, not only into the MLP.

        A forward of another thread or context that runs in the meantime is not edited: for such a forward, the edits
        that this method receives return the same tensor. Hooks are added and removed while the lock of the model is
        held; the block itself does not hold it.
        """

    @abstractmethod
    def run_model(self, inputs: ModelInputs, keep: Tensor | None, **options: Any) -> Tensor:
        """Run the model.

        Args:
            inputs: The batch; its mask is respected, on both padding sides.
            keep: Positions of which logits are wanted, ascending, ``[k]``; None: all.
            **options: Further arguments of the model's forward.

        Returns:
            Logits ``[batch, k, vocab]``.
        """

    def sees_kept_positions_only(self, hook_point: str) -> bool:
        """Whether a hook point sees only positions whose logits are wanted (``keep`` of ``run_model``)."""
        return hook_point == LOGITS

    def create_replay(self) -> ReplayEngine:
        """Make the engine that reruns single tokens over stored keys and values.

        Raises:
            ReplayRefusedError: The model cannot be replayed exactly, and why; ablations then run the plain loop.
        """
        raise ReplayRefusedError(f"{type(self).__name__} cannot replay single tokens.")

    def called_models(self) -> Sequence[nn.Module]:
        """The model, and models inside it, that are called with tokens and a cache while it generates."""
        return [item for item in self.model.modules() if item is self.model or isinstance(item, PreTrainedModel)]

    def follows_longest_row(self, inputs: ModelInputs) -> str | None:
        """Why the numbers of a row depend on the longest row of this batch, as text; None if they do not."""
        return follows_longest_row(self.called_models(), inputs)

    def slots_cached(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | object:
        """How many slots of each row a call of one of ``called_models`` finds in its cache, from its arguments.

        Returns:
            The number; or the cache itself if it is recurrent and does not tell, and then calls with it are counted.
        """
        return slots_in_cache(args, kwargs)

    # ------------------------------------------------------------------------------------------------------------ runs

    @property
    def model_device(self) -> torch.device:
        """Device on which the model takes tokens and gives logits; its blocks may be on others."""
        return input_device(self.model)

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.hook_point_names())

    @functools.cached_property
    def _as_named(self) -> frozenset[str]:
        """The hook points that a forward has proved, of those that need proof."""
        parts: dict[int, list[str]] = {}
        for name in self.hook_point_names():  # in their order: which block is proved first must not be chance
            found = split_layer(name)
            if found is not None and name == in_layer(*found):
                parts.setdefault(found[0], []).append(found[1])
        return parts_as_named(self, parts)

    @functools.cached_property
    def _patterns_as_named(self) -> frozenset[str]:
        with model_lock(self.model):
            return patterns_as_named(self, self.pattern_names())

    def _is_as_named(self, name: str) -> bool:
        with model_lock(self.model):
            if name not in self._as_named:
                del self._as_named  # somebody else's edits may have been in force when it was found out
            return name in self._as_named

    def resolve_hook_point(self, name: str) -> str:
        """The name from ``hook_point_names`` for a hook point that may be given by an alias.

        Raises:
            HookPointError: The model has no such hook point; the message has the nearest names that exist.
        """
        wanted = canonical(name)
        found = split_layer(wanted)
        if wanted in self._known:
            if found is not None and found[1] in CHECKED and not self._is_as_named(wanted):
                raise HookPointError(
                    f"The model has no hook point {name!r}: in block {found[0]}, the activation there is not "
                    f"{expected_at(found[1])}, or an edit there does not reach it. "
                    "`interpretune hooks` lists the hook points."
                )
            return wanted
        if name in self._known:
            return name
        if found is not None and found[1] in IN_ATTENTION:
            reached = found[1] not in HEAD_INPUTS or wanted in self.head_input_names()
            if reached and in_layer(found[0], ATTN_PATTERN) in self._patterns_as_named:
                return wanted
            raise HookPointError(
                f"{type(self).__name__} does not reach {name!r}: in this model, attention mixes values by something "
                f"else. Take the outputs of heads, {in_layer(found[0], ATTN_Z)}, or a backend that reaches it."
            )
        known = self.hook_point_names()
        accepted = dict.fromkeys([*known, *(alias for item in known for alias in aliases(item))])
        near = get_close_matches(name, accepted, n=3, cutoff=0.5)
        raise HookPointError(
            f"The model has no hook point {name!r}. "
            + (f"Nearest: {', '.join(near)}." if near else f"It has, among others: {', '.join(known[:8])}.")
        )

    def check_hook_points(self, names: Sequence[str]) -> None:
        """Refuse names that the model does not have (``HookPointError``)."""
        for name in names:
            self.resolve_hook_point(name)

    def forward(
        self, inputs: ModelInputs, edits: Mapping[str, Edit], points: Points | None = None, **options: Any
    ) -> Tensor:
        """Logits ``[batch, pos, vocab]``, or ``[n, vocab]`` at ``points``, with each edit applied at its hook point.

        Raises:
            HookPointError: A hook point is unknown, or the forward never reached it.
            NotFiniteError: Requested logits are NaN or infinite; logits of padding are not checked.
        """
        with model_lock(self.model), self.counted_hooks(edits):
            if points is None:
                logits = self.run_model(inputs, None, **options)
            elif any(self.sees_kept_positions_only(self.resolve_hook_point(name)) for name in edits):
                # edits see all positions
                logits = points.of(self.run_model(inputs, None, **options))
            else:
                keep, where = points.positions.unique(return_inverse=True)
                logits = self.run_model(inputs, keep, **options)[points.examples, where]
        check_logits(self, logits, inputs, edits, points)
        return logits

    def blind_tokens_attend(self, inputs: ModelInputs) -> AbstractContextManager[None]:
        """A context in which forwards of padded rows are finite although the model's own attention would give NaN."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def counted_hooks(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """``hooked`` with names resolved, and an error if some edit was never made (unless the block fails itself).

        Edits of one hook point under several names are made in turn.
        """
        if edits:
            with model_lock(self.model):
                _ = self._as_named  # found out while no hook of this call is on the model
        fired: set[str] = set()

        def counted(name: str, edit: Edit) -> Edit:
            def apply(activations: Tensor) -> Tensor:
                fired.add(name)
                return edit(activations)

            return apply

        chains: dict[str, list[Edit]] = {}
        for name, edit in edits.items():
            chains.setdefault(self.resolve_hook_point(name), []).append(counted(name, edit))
        with self.hooked({point: in_turn(chain) for point, chain in chains.items()}), fullgraph_told(self.model):
            yield
        if missed := edits.keys() - fired:
            raise HookPointError(f"The model never ran the hook points {sorted(missed)} in its forward.")

    def run(self, inputs: ModelInputs) -> Tensor:
        """Logits ``[batch, vocab]`` at the answer position, without latent models."""
        return self.forward(inputs, {}, inputs.answers)

    def run_with_cache(self, inputs: ModelInputs, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[batch, vocab]`` at the answer position and activations ``[batch, pos, ...]`` at named hook points.

        Raises:
            HookPointError: A name is unknown.
        """
        cache: dict[str, Tensor] = {}
        logits = self.forward(inputs, _keep(names, cache), inputs.answers)
        return logits, cache

    def capture(self, inputs: ModelInputs, names: Sequence[str]) -> dict[str, Tensor]:
        """Activations ``[batch, pos, ...]`` at named hook points, from a forward that stops at the last one.

        Raises:
            HookPointError: A name is unknown.
        """
        cache: dict[str, Tensor] = {}
        with contextlib.suppress(AllCaptured), torch.no_grad():
            self.forward(inputs, _keep(names, cache, stop=True))
        return cache


def _for_caller_alone(hooked: Hooked) -> Hooked:
    """``hooked`` of a class, with edits that return their input whenever another thread or context runs the model."""

    @functools.wraps(hooked)
    @contextlib.contextmanager
    def alone(self: HookedModel, edits: Mapping[str, Edit]) -> Iterator[None]:
        with run_eagerly(self.model), OwnContext() as here:
            home = self.model_device  # where masks, points and latent models are
            block = hooked(self, {name: here.only_here(at_home(edit, home)) for name, edit in edits.items()})
            begun, error = False, None

            def leave(error: BaseException | None) -> None:
                nonlocal begun
                if begun:
                    with model_lock(self.model):
                        block.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
                    begun = False

            try:
                try:
                    with model_lock(self.model):
                        begun = True
                        try:
                            block.__enter__()
                        except Exception:  # not an interrupt, which may come when the hooks are on the model
                            begun = False  # a block whose beginning fails has undone it
                            raise
                    yield
                except BaseException as raised:
                    error = raised
                    raise
                finally:
                    leave(error)
            finally:
                leave(error)  # an interrupt may have come in the first
                error = None

    return alone


def _keep(names: Sequence[str], cache: dict[str, Tensor], *, stop: bool = False) -> dict[str, Edit]:
    """Edits that change nothing and keep copies; with ``stop`` the last of them ends the forward."""

    def keep(name: str) -> Edit:
        def store(activations: Tensor) -> Tensor:
            cache[name] = activations.detach().clone()
            if stop and len(cache) == len(set(names)):
                raise AllCaptured
            return activations

        return store

    return {name: keep(name) for name in names}

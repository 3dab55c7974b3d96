"""Replay of TransformerLens models, through their own hook points.

Rotated queries and keys, values, and the output of attention before its projection are hook points of every block. A
replay runs rows of one token each, or of a few, for which the model's own attention would see nothing but these tokens,
and puts attention over the shared prefix in before the projection. Everything else is the model's own.
"""

from __future__ import annotations

import contextlib
import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge

from interpretune import ReplayRefusedError
from interpretune.activations import ATTN_Z, RESID_POST, RESID_PRE, in_layer, split_layer
from interpretune.analysis import Edit, ModelInputs, Points
from interpretune.models import position_ids
from interpretune.replay import (
    LayerKeys,
    Prefix,
    ReplayEngine,
    Rows,
    SuffixRows,
    attend,
    attend_suffixes,
    blocks_below_skipped,
    check_causal,
    columns_only,
    positions_only,
    slots_of,
)
from interpretune_tlens.spared_work import spared_in_bridges

if TYPE_CHECKING:
    from interpretune_tlens.backend import TransformerLensBackend

Attention = Callable[["AttentionParts", Tensor, Tensor, Tensor], Tensor]
"""Attention of one block: how it attends, and query, key and value, ``[n, s, heads, d_head]``, as the result."""
PARTS = (("query", ("hook_rot_q", "hook_q")), ("key", ("hook_rot_k", "hook_k")), ("value", ("hook_v",)))
SCORES = "hook_attn_scores"
NEEDED = (SCORES, "hook_z")


@frozen
class AttentionParts:
    """How one block attends.

    Attributes:
        scale: Factor of the scores.
        softcap: Scores are bent to ``softcap * tanh(scores / softcap)``; None: they are not.
        softmax_dtype: The dtype in which scores are normalised; None: their own.
    """

    scale: float
    softcap: float | None
    softmax_dtype: torch.dtype | None


class TransformerLensReplay(ReplayEngine):
    """What bridges and hooked transformers have in common."""

    backend: TransformerLensBackend

    def __init__(self, backend: TransformerLensBackend) -> None:
        """Look at the model.

        Raises:
            ReplayRefusedError: It cannot be replayed exactly, and why.
        """
        model: Any = backend.model
        super().__init__(backend, list(model.blocks))
        self._model = model
        known = set(backend.hook_point_names())
        self._names = [{part: _first(block, names, known) for part, names in PARTS} for block in range(self.n_blocks)]
        self._refuse_unknown()
        self._parts = [self._attention_of(block) for block in self.blocks]
        fired: set[str] = set()
        unmasked: list[str] = []

        def noted(name: str) -> Edit:
            def note(activations: Tensor) -> Tensor:
                fired.add(name)
                if name.endswith(SCORES) and _visible(activations).triu(1).any():
                    unmasked.append(name)
                return activations

            return note

        names = [name for parts in self._names for name in parts.values()]
        names += [f"blocks.{block}.attn.{place}" for block in range(self.n_blocks) for place in NEEDED]
        with backend.hooked({name: noted(name) for name in names if name in known}):
            check_causal(lambda inputs: backend.forward(inputs, {}), backend.model_device)
        if silent := [name for name in names if name not in fired]:
            raise ReplayRefusedError(f"The model never runs {silent[0]}, which a replay reads.")
        if unmasked:  # as in bridges that show them after the softmax
            raise ReplayRefusedError(f"{unmasked[0]} shows no scores in which later tokens are masked.")

    @abstractmethod
    def _refuse_unknown(self) -> None:
        """Refuse configurations whose attention has parts that a replay does not know."""

    @abstractmethod
    def _attention_of(self, block: Any) -> AttentionParts:
        """How a block attends."""

    @abstractmethod
    def _run_tokens(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        start: int,
        hidden: Tensor,
        columns: Tensor | None,
        wanted: Tensor | None,
    ) -> Tensor:
        """Run tokens ``[n, s]`` from block ``start`` up; hooks are on the model.

        Returns:
            ``[n, s, c]``, or where logits are wanted, ``[n, w, c]``.
        """

    def depth(self, hook_point: str) -> float:
        """See ``ReplayEngine.depth``."""
        if (found := split_layer(hook_point)) is not None:
            return found[0] + {RESID_PRE: 0.0, RESID_POST: 0.9}.get(found[1], 0.5)
        kind, _, rest = hook_point.partition(".")
        block = rest.partition(".")[0]
        if kind != "blocks" or not block.isdecimal():
            raise ReplayRefusedError(f"{hook_point} lies in no block.")
        return int(block) + 0.5

    def prefill(
        self, inputs: ModelInputs, edits: Mapping[str, Edit], points: Points, first_block: int
    ) -> tuple[Tensor, Prefix]:
        """See ``ReplayEngine.prefill``."""
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        visible: dict[int, Tensor] = {}
        itself = torch.eye(inputs.tokens.shape[1], dtype=torch.bool, device=inputs.tokens.device)

        def keep(sink: dict[int, Tensor], block: int) -> Edit:
            def note(activations: Tensor) -> Tensor:
                sink[block] = activations.transpose(1, 2)
                return activations

            return note

        def note_visible(block: int) -> Edit:
            def note(scores: Tensor) -> Tensor:
                visible[block] = _visible(scores) & ~itself
                return scores

            return note

        notes: dict[str, Edit] = {}
        for block in range(first_block, self.n_blocks):
            notes[self._names[block]["key"]] = keep(keys, block)
            notes[self._names[block]["value"]] = keep(values, block)
            notes[f"blocks.{block}.attn.{SCORES}"] = note_visible(block)
        queries = {self._names[block]["query"] for block in range(first_block, self.n_blocks)}
        if clash := (notes.keys() | queries) & edits.keys():
            raise ReplayRefusedError(f"A latent model stands at {', '.join(sorted(clash))}, inside of attention.")
        logits = self.backend.forward(inputs, {**edits, **notes}, points)
        layers: dict[int, LayerKeys] = {}
        different: list[tuple[Tensor, Any, Any]] = []
        for block in sorted(keys):
            found = next((item for item in different if torch.equal(item[0], visible[block])), None)
            if found is None:
                seen: Any = functools.cache(functools.partial(list, visible[block] | itself))
                found = visible[block], slots_of(points.of(visible[block]), points), seen
                different.append(found)
            layers[block] = LayerKeys(keys[block], values[block], *found[1:])
        places = points.of(position_ids(inputs.attention_mask))
        return logits, Prefix(points, points.of(inputs.tokens), places, layers)

    def replay(
        self,
        prefix: Prefix,
        rows: Rows,
        start: int,
        hidden: Tensor,
        edits: Mapping[str, Edit],
        columns: Tensor | None,
    ) -> Tensor:
        """See ``ReplayEngine.replay``."""

        def attention(layer: LayerKeys) -> Attention:
            def mix(about: AttentionParts, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                token = (query[:, 0], key[:, 0], value[:, 0])
                settings = (about.scale, about.softcap, about.softmax_dtype)
                return attend(*token, layer, prefix.points, rows, *settings).unsqueeze(1)

            return mix

        tokens, numbers = (item[rows.points].unsqueeze(-1) for item in (prefix.tokens, prefix.position_ids))
        with self.backend.counted_hooks(self._with_attention(prefix, attention, start, edits)):
            return self._run_tokens(tokens, numbers, start, hidden.unsqueeze(1), columns, None)[:, -1]

    def replay_suffixes(
        self,
        prefix: Prefix,
        rows: SuffixRows,
        start: int,
        hidden: Tensor,
        edits: Mapping[str, Edit],
        columns: Tensor | None,
    ) -> Tensor:
        """See ``ReplayEngine.replay_suffixes``."""

        def attention(layer: LayerKeys) -> Attention:
            def mix(about: AttentionParts, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                parts = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
                return attend_suffixes(*parts, layer, rows, about.scale, about.softcap, about.softmax_dtype)

            return mix

        with self.backend.counted_hooks(self._with_attention(prefix, attention, start, edits)):
            return self._run_tokens(rows.tokens, rows.position_ids, start, hidden, columns, rows.wanted)

    def _with_attention(
        self, prefix: Prefix, attention: Callable[[LayerKeys], Attention], start: int, edits: Mapping[str, Edit]
    ) -> dict[str, Edit]:
        hooks = dict(edits)
        for block in range(start, self.n_blocks):
            after = edits.get(in_layer(block, ATTN_Z))
            hooks |= self._attention_edits(block, attention(prefix.layers[block]), after)
        return hooks

    def _attention_edits(self, block: int, attention: Attention, after: Edit | None) -> dict[str, Edit]:
        """Hooks that note a block's query, key and value and put attention over the prefix in before the projection."""
        seen: dict[str, Tensor] = {}

        def note(part: str) -> Edit:
            def keep(activations: Tensor) -> Tensor:
                seen[part] = activations
                return activations

            return keep

        def put(activations: Tensor) -> Tensor:
            mixed = attention(self._parts[block], seen.pop("query"), seen.pop("key"), seen.pop("value"))
            mixed = mixed.flatten(2).to(activations.dtype)
            return mixed if after is None else after(mixed)

        edits = {name: note(part) for part, name in self._names[block].items()}
        return {**edits, in_layer(block, ATTN_Z): put}


class BridgeReplay(TransformerLensReplay):
    """Replays a ``TransformerBridge``: the Hugging Face model that it wraps runs from a block of its choice up."""

    def _refuse_unknown(self) -> None:
        config = self._model.cfg
        if getattr(config, "positional_embedding_type", None) == "alibi":
            raise ReplayRefusedError("The model's attention has a bias by distance (alibi).")
        for block in self.blocks:
            attention: Any = getattr(block, "attn", None)
            original = getattr(attention, "original_component", None)
            if original is None:
                raise ReplayRefusedError(f"{block.name} of the bridge has no attention.")
            if getattr(original, "sinks", None) is not None:
                raise ReplayRefusedError("The model's attention has sinks.")

    def _attention_of(self, block: Any) -> AttentionParts:
        attention, original = block.attn, block.attn.original_component
        width = getattr(original, "head_dim", None) or self._model.cfg.d_head
        scale = getattr(original, "scaling", None)
        if not isinstance(scale, float):
            scale = width**-0.5
            if getattr(attention.config, "scale_attn_by_inverse_layer_idx", False):
                scale /= attention._layer_idx + 1
        return AttentionParts(
            scale,
            getattr(original, "attn_logit_softcapping", None),
            torch.float32 if hasattr(attention, "hook_rot_q") else None,
        )

    @functools.cached_property
    def _norms(self) -> list[NormalizationBridge]:
        return [part for part in self._model.modules() if isinstance(part, NormalizationBridge)]

    def _run_tokens(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        start: int,
        hidden: Tensor,
        columns: Tensor | None,
        wanted: Tensor | None,
    ) -> Tensor:
        arguments: dict[str, Any] = {"attention_mask": torch.ones_like(tokens), "use_cache": False}
        if self.backend.takes_positions:
            arguments["position_ids"] = position_ids
        head: Any = self._model.unembed.original_component
        with contextlib.ExitStack() as stack:
            stack.enter_context(spared_in_bridges(self._norms, self.blocks[start:]))
            stack.enter_context(blocks_below_skipped(self.blocks, start, hidden, in_tuple=self.in_tuple))
            narrowed = stack.enter_context(columns_only(head, columns))
            if wanted is not None:
                stack.enter_context(positions_only(head, wanted))
            logits: Tensor = self._model(tokens, **arguments)
        return logits if narrowed else logits[..., columns]


def _visible(scores: Tensor) -> Tensor:
    """Which keys each query sees, ``[batch, query, key]``; masked scores are the lowest of their dtype, or below."""
    return scores[:, 0] > torch.finfo(scores.dtype).min / 2


def _first(block: int, names: Sequence[str], known: set[str]) -> str:
    for name in names:
        if (path := f"blocks.{block}.attn.{name}") in known:
            return path
    raise ReplayRefusedError(f"Block {block} has no hook point {' or '.join(names)} in its attention.")

"""Replay of Hugging Face causal models.

A cache object that never grows stores keys and values. Replays run rows of one token each with our own attention
function (transformers' ``AttentionInterface``). It reads the prefix that rows of one example share: no copies of keys
and values, and no mask.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache

from interpretune.activations.edits import Edit
from interpretune.activations.hook_names import IN_ATTENTION, split_layer
from interpretune.activations.inputs import ModelInputs, Points
from interpretune.backends.hugging_face_attention import HARMLESS, attention_in_place
from interpretune.errors import ReplayRefusedError
from interpretune.models.padding import position_ids
from interpretune.replay.engine import ReplayEngine, blocks_below_skipped, check_causal, columns_only, positions_only
from interpretune.replay.prefix import LayerKeys, Prefix, Rows, attend, seen_slots, visible_slots
from interpretune.replay.suffix_rows import SuffixRows, attend_suffixes

if TYPE_CHECKING:
    from interpretune.backends.hugging_face import HuggingFaceBackend

ATTENTION = "interpretune_replay"

Attention = Callable[[int, Tensor, Tensor, Tensor, float, float | None], Tensor]
"""Attention of one block: query, key and value ``[n, heads, s, d_head]``, scale, softcap; ``[n, s, heads, d_head]``."""


@frozen(eq=False)
class _Running:
    """The running replay."""

    attend: Attention
    windows: Mapping[int, int | None]
    blocks_run: set[int] = field(factory=set)


_running: ContextVar[_Running] = ContextVar("interpretune_replay")


class _KeepingCache(DynamicCache):  # type: ignore[misc]
    """Stores the keys and values of the blocks from ``first`` up, and looks empty."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the input."""
        if layer_idx >= self.first:
            self.kept[layer_idx] = key_states, value_states
        return key_states, value_states


class HuggingFaceReplay(ReplayEngine):
    """Replays a model whose attention goes through transformers' ``AttentionInterface``."""

    backend: HuggingFaceBackend

    def __init__(self, backend: HuggingFaceBackend) -> None:
        """Refuse a model that cannot be replayed exactly (``ReplayRefusedError``)."""
        model: Any = backend.model
        self._model = model
        self._text_config: Any = model.config.get_text_config()
        name = type(self._model).__name__
        if backend.blocks is None:
            raise ReplayRefusedError(f"{name} has no list of as many blocks as its configuration says.")
        if not getattr(self._model, "_supports_attention_backend", False):
            raise ReplayRefusedError(f"{name} has an attention of its own (no AttentionInterface).")
        self._path, blocks = backend.blocks
        super().__init__(backend, list(blocks))
        self._windows = windows_of(self._text_config, self.n_blocks)
        check_causal(lambda inputs: backend.forward(inputs, {}), backend.model_device)

    def depth(self, hook_point: str) -> float:
        """See ``ReplayEngine.depth``."""
        if (split_layer(hook_point) or (0, ""))[1] in IN_ATTENTION:
            raise ReplayRefusedError(f"{hook_point} is inside attention, which replays compute in their own way.")
        path, side = self.backend.module_and_side(hook_point)
        parts = path.removeprefix(f"{self._path}.").split(".")
        if not path.startswith(f"{self._path}.") or not parts[0].isdecimal():
            raise ReplayRefusedError(f"{hook_point} lies in no block.")
        return int(parts[0]) + (0.5 if len(parts) > 1 else 0.0 if side == "in" else 0.9)

    def prefill(
        self, inputs: ModelInputs, edits: Mapping[str, Edit], points: Points, first_block: int
    ) -> tuple[Tensor, Prefix]:
        """See ``ReplayEngine.prefill``."""
        cache = _KeepingCache(first_block)

        def note(_: nn.Module, __: Any, output: Any) -> None:
            self.in_tuple = isinstance(output, tuple)

        handle = self.blocks[0].register_forward_hook(note)  # whoever runs the model, it returns the same kind
        try:
            logits = self.backend.forward(inputs, edits, points, past_key_values=cache, use_cache=True)
        finally:
            handle.remove()
        self._check_kept(cache, inputs, first_block)
        windows, mask = set(self._windows.values()), inputs.attention_mask
        slots = {window: visible_slots(mask, points, window) for window in windows}
        seen = {window: functools.cache(functools.partial(seen_slots, mask, window)) for window in windows}
        layers = {
            block: LayerKeys(keys, values, slots[self._windows[block]], seen[self._windows[block]])
            for block, (keys, values) in cache.kept.items()
        }
        numbers = points.of(position_ids(inputs.attention_mask))
        return logits, Prefix(points, points.of(inputs.tokens), numbers, layers)

    def _check_kept(self, cache: _KeepingCache, inputs: ModelInputs, first_block: int) -> None:
        wanted = set(range(first_block, self.n_blocks))
        if missing := wanted - cache.kept.keys():
            raise ReplayRefusedError(
                f"The blocks {sorted(missing)} of {type(self._model).__name__} keep no keys and values of their own."
            )
        for block, (keys, values) in cache.kept.items():
            if keys.ndim != 4 or values.ndim != 4 or keys.shape[::2] != (len(inputs), inputs.tokens.shape[1]):
                raise ReplayRefusedError(
                    f"Block {block} of {type(self._model).__name__} keeps keys of shape {tuple(keys.shape)}; expected "
                    f"[{len(inputs)}, kv_heads, {inputs.tokens.shape[1]}, d_head]."
                )

    def replay(
        self, prefix: Prefix, rows: Rows, start: int, hidden: Tensor, edits: Mapping[str, Edit], columns: Tensor | None
    ) -> Tensor:
        """See ``ReplayEngine.replay``."""
        softmax_dtype = self._softmax_dtype

        def attention(block: int, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> Tensor:
            layer, token = prefix.layers[block], (q[:, :, 0], k[:, :, 0], v[:, :, 0])
            return attend(*token, layer, prefix.points, rows, scale, softcap, softmax_dtype).unsqueeze(1)

        tokens, numbers = (item[rows.points].unsqueeze(-1) for item in (prefix.tokens, prefix.position_ids))
        return self._run(attention, tokens, numbers, None, start, hidden.unsqueeze(1), edits, columns)[:, -1]

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
        softmax_dtype = self._softmax_dtype

        def attention(block: int, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> Tensor:
            return attend_suffixes(q, k, v, prefix.layers[block], rows, scale, softcap, softmax_dtype)

        return self._run(attention, rows.tokens, rows.position_ids, rows.wanted, start, hidden, edits, columns)

    @property
    def _softmax_dtype(self) -> torch.dtype | None:
        """The dtype in which the model normalises scores; None: their own."""
        return torch.float32 if self._text_config._attn_implementation == "eager" else None

    def _run(
        self,
        attention: Attention,
        tokens: Tensor,
        position_ids: Tensor,
        wanted: Tensor | None,
        start: int,
        hidden: Tensor,
        edits: Mapping[str, Edit],
        columns: Tensor | None,
    ) -> Tensor:
        """Run rows of tokens ``[n, s]``; logits everywhere ``[n, s, c]``, or where they are wanted ``[n, w, c]``."""
        running = _Running(attention, self._windows)
        head: Any = self._model.get_output_embeddings()
        arguments: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
        if self.backend.takes("position_ids"):
            arguments["position_ids"] = position_ids
        with (
            blocks_below_skipped(self.blocks, start, hidden, in_tuple=self.in_tuple),
            columns_only(head, columns) as narrowed,
            contextlib.nullcontext() if wanted is None else positions_only(head, wanted),
            self.backend.counted_hooks(edits),
            self._attention(running),
        ):
            logits: Tensor = self._model(**arguments).logits
        if missing := set(range(start, self.n_blocks)) - running.blocks_run:
            raise ReplayRefusedError(
                f"The blocks {sorted(missing)} of {type(self._model).__name__} did not ask the attention function of "
                "the replay."
            )
        return logits if narrowed else logits[..., columns]

    @contextlib.contextmanager
    def _attention(self, running: _Running) -> Iterator[None]:
        """Let the model's attention go through ``replay_attention``, in this thread and context."""
        token = _running.set(running)
        try:
            with attention_in_place(self._model, ATTENTION):
                yield
        finally:
            _running.reset(token)


def replay_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of the rows of the running replay; the signature is that of transformers.

    Raises:
        ReplayRefusedError: The model's attention has a part that is unknown here.
    """
    running = _running.get()
    block = int(module.layer_idx)  # type: ignore[arg-type]
    unknown = {name for name, given in others.items() if isinstance(given, Tensor) and name not in HARMLESS}
    window = running.windows[block]
    if attention_mask is not None:
        unknown.add("attention_mask")
    if dropout:
        unknown.add(f"dropout of {dropout}")
    if (sliding_window or window) != window:
        unknown.add(f"a window of {sliding_window} where the configuration says {window}")
    if unknown:
        raise ReplayRefusedError(
            f"The attention of {type(module).__name__} has parts that a replay does not know: "
            f"{', '.join(sorted(unknown))}."
        )
    running.blocks_run.add(block)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return running.attend(block, query, key, value, scale, softcap), None


AttentionInterface.register(ATTENTION, replay_attention)


def windows_of(config: Any, n_blocks: int) -> dict[int, int | None]:
    """Slots that a token sees in each block, its own included; None: all before it.

    Raises:
        ReplayRefusedError: A block has attention of a kind that is unknown here.
    """
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        used = window if getattr(config, "use_sliding_window", True) else None
        return dict.fromkeys(range(n_blocks), used)
    if unknown := set(types[:n_blocks]) - {"full_attention", "sliding_attention"}:
        raise ReplayRefusedError(f"The model has blocks of the kind {', '.join(sorted(unknown))}.")
    return {block: window if types[block] == "sliding_attention" else None for block in range(n_blocks)}

"""Replay of hooked transformers, which can start at any block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interpretune import ReplayRefusedError
from interpretune.activations import replaced_method
from interpretune.analysis import Edit, ModelInputs, Points
from interpretune.replay import Prefix, ReadyContext, positions_only
from interpretune_tlens.hooked.laid_out import LaidOutWeights
from interpretune_tlens.hooked.spared_work import attention_spared, spared
from interpretune_tlens.replay import AttentionParts, TransformerLensReplay

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class HookedReplay(TransformerLensReplay):
    """Replays a ``HookedTransformer``, which can start at any block."""

    def _refuse_unknown(self) -> None:
        config = self._model.cfg
        kind = config.positional_embedding_type
        if kind not in ("standard", "rotary"):
            raise ReplayRefusedError(f"The model has position embeddings of the kind {kind!r}.")
        for name in ("use_logn_attn", "use_attention_sinks", "use_attn_result", "use_split_qkv_input", "use_attn_in"):
            if getattr(config, name, False):
                raise ReplayRefusedError(f"The model is configured with {name}.")

    def _attention_of(self, block: Any) -> AttentionParts:
        softcap = self._model.cfg.attn_scores_soft_cap
        used = softcap if softcap is not None and softcap > 0 else None
        return AttentionParts(1 / block.attn.attn_scale, used, None)

    def prepare(self, first_block: int) -> ReadyContext:
        """See ``ReplayEngine.prepare``."""
        return LaidOutWeights(self.blocks[first_block:])

    def prefill(
        self, inputs: ModelInputs, edits: Mapping[str, Edit], points: Points, first_block: int
    ) -> tuple[Tensor, Prefix]:
        """See ``ReplayEngine.prefill``."""
        with spared(self.blocks):
            return super().prefill(inputs, edits, points, first_block)

    def _run_tokens(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        start: int,
        hidden: Tensor,
        columns: Tensor | None,
        wanted: Tensor | None,
    ) -> Tensor:
        # The model reads positions off the running sum of the mask: this mask says where each token of a row stands.
        mask = position_ids.diff(dim=-1, prepend=torch.full_like(position_ids[:, :1], -1))
        with contextlib.ExitStack() as stack:
            stack.enter_context(spared(self.blocks[start:]))
            stack.enter_context(attention_spared(self.blocks[start:]))
            stack.enter_context(_unembedding(self._model, columns))
            if wanted is not None:
                stack.enter_context(positions_only(self._model.unembed, wanted))
            logits: Tensor = self._model(hidden, start_at_layer=start, attention_mask=mask)
        return logits


@contextlib.contextmanager
def _unembedding(model: HookedTransformer, columns: Tensor | None) -> Iterator[None]:
    """Let a hooked transformer unembed some columns only."""
    if columns is None:
        yield
        return
    unembed: Any = model.unembed
    weight, bias = unembed.W_U[:, columns].T, unembed.b_U[columns]

    def narrow(residual: Tensor) -> Tensor:
        return nn.functional.linear(residual, weight, bias)

    with replaced_method(unembed, "forward", narrow):
        yield

"""The analysis backend of TransformerLens models."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpretune.activations import ATTN_PATTERN, ATTN_Z, LOGITS, blind_tokens_attend, in_layer, split_layer
from interpretune.analysis import AnalysisBackend, Edit, ModelInputs, ReplayEngine
from interpretune.backends import NormAt
from interpretune.models import keep_weights_in_place
from interpretune.system import OwnContext, uncompiled
from interpretune_tlens.hook_points import around_norms, decoder_hook_points, hooked_point, norms_of
from interpretune_tlens.noted_state import NOTED_IN_FORWARDS
from interpretune_tlens.replay import BridgeReplay

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformers import PreTrainedTokenizerBase

UNEMBED_IN = "unembed.hook_in"


def padding_attends(model: Any, attention_mask: Tensor) -> AbstractContextManager[None]:
    """``blind_tokens_attend`` for the blocks of a bridge; a hooked transformer has ways of its own."""
    is_bridge = getattr(model, "original_model", None) is not None
    return blind_tokens_attend(model, lambda: model.blocks if is_bridge else [], attention_mask)


class TransformerLensBackend(AnalysisBackend):
    """Runs a ``TransformerBridge`` or a ``HookedTransformer`` with edits at its hook points, aliases included.

    At canonical names (``interpretune.activations``) heads are flattened, and ``resid_mid`` of a bridge is
    changed for the skip connection too: its own ``hook_resid_mid`` is the input of the MLP's norm alone.
    """

    passing_state = frozenset({"_model", "_special", "takes_positions", "_points", "_canonical", "_around_norms"})
    passing_model_state = NOTED_IN_FORWARDS
    passing_model_library = "transformer_lens"

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self._model: Any = uncompiled(model)
        model = self._model
        keep_weights_in_place(model)
        known: Any = tokenizer if tokenizer is not None else self._model.tokenizer
        ids = sorted(set(known.all_special_ids)) if known is not None else []
        self._special = torch.tensor(ids, dtype=torch.long)
        wrapped = getattr(model, "original_model", None)
        arguments = set() if wrapped is None else set(inspect.signature(wrapped.forward).parameters)
        self.takes_positions = "position_ids" in arguments
        points: Any = self._model.hook_dict  # a bridge resolves all its aliases whenever it is asked for them
        self._points: dict[str, HookPoint] = dict(points)
        self._canonical = dict(decoder_hook_points(model))
        self._around_norms = dict(around_norms(model))

    @property
    def model(self) -> nn.Module:
        """The TransformerLens model."""
        model: nn.Module = self._model
        return model

    @property
    def _is_bridge(self) -> bool:
        return getattr(self._model, "original_model", None) is not None

    @property
    def vocab_size(self) -> int:
        """Number of logits at each position."""
        cfg = self._model.cfg
        return int(cfg.d_vocab_out if getattr(cfg, "d_vocab_out", -1) > 0 else cfg.d_vocab)

    def hook_point_names(self) -> Sequence[str]:
        """The canonical names, all names that TransformerLens resolves for this model, and those around its norms."""
        return [*self._canonical, *self._points, *self._around_norms]

    def pattern_names(self) -> Sequence[str]:
        """Those of blocks with TransformerLens's own hook point for them."""
        names = {in_layer(layer, ATTN_PATTERN): f"blocks.{layer}.attn.hook_pattern" for layer in range(self.n_layers)}
        return [name for name, own in names.items() if own in self._points]

    def special_token_ids(self) -> Tensor:
        """Special tokens of the session's tokenizer, or of the model's where there is no session."""
        return self._special.to(self.model_device)

    def run_model(self, inputs: ModelInputs, keep: Tensor | None, **options: Any) -> Tensor:
        """Run the model; see ``AnalysisBackend.run_model``."""
        arguments: dict[str, Any] = {"attention_mask": inputs.attention_mask, **inputs.extra, **options}
        with contextlib.ExitStack() as stack:
            if keep is not None:  # after all edits that are made there
                here = stack.enter_context(OwnContext())
                narrow = here.only_here(lambda residual: residual[:, keep])
                stack.enter_context(hooked_point(self._points[UNEMBED_IN], narrow))
            stack.enter_context(self.blind_tokens_attend(inputs))
            logits: Tensor = self._model(inputs.tokens, **arguments)
        return logits

    def called_models(self) -> Sequence[nn.Module]:
        """The model, and of a bridge also the models that it wraps."""
        wrapped = getattr(self._model, "original_model", None)
        parts = () if wrapped is None else (item for item in wrapped.modules() if isinstance(item, PreTrainedModel))
        return [self._model, *parts]

    def slots_cached(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | object:
        """See ``HookedModel``; hooked transformers have a cache of their own kind."""
        if not self._is_bridge:
            from interpretune_tlens.hooked.generation import slots_in

            found = (slots_in(value) for value in (*args, *kwargs.values()))
            if (slots := next((number for number in found if number is not None), None)) is not None:
                return slots
        return super().slots_cached(args, kwargs)

    def blind_tokens_attend(self, inputs: ModelInputs) -> AbstractContextManager[None]:
        """See ``HookedModel.blind_tokens_attend``."""
        return padding_attends(self._model, inputs.attention_mask)

    def sees_kept_positions_only(self, hook_point: str) -> bool:
        """See ``HookedModel``: the unembedding, though not what goes into it."""
        return hook_point == LOGITS or (hook_point.startswith("unembed.") and hook_point != UNEMBED_IN)

    def written_by(self, hook_point: str, activations: Tensor) -> Tensor:
        """See ``AnalysisBackend.written_by``; the projection alone."""
        block, is_attention = self._block_of(hook_point)
        part = getattr(block, "attn" if is_attention else "mlp", None)
        projection = getattr(part, "o" if is_attention else "out", None)
        if isinstance(projection, nn.Module):  # of a bridge
            return projection(activations.unsqueeze(1)).squeeze(1)
        names = ("W_O", "b_O") if is_attention else ("W_out", "b_out")
        weight, bias = (getattr(part, name, None) for name in names)
        if isinstance(weight, Tensor) and weight.is_floating_point() and isinstance(bias, Tensor):
            return activations @ weight.reshape(activations.shape[-1], -1) + bias
        return super().written_by(hook_point, activations)

    def projection(self, hook_point: str) -> Tensor | None:
        """See ``AnalysisBackend.projection``."""
        block, is_attention = self._block_of(hook_point)
        part: Any = getattr(block, "attn" if is_attention else "mlp", None)
        module = getattr(part, "o" if is_attention else "out", None)
        if isinstance(module, nn.Module):  # of a bridge
            original = getattr(module, "original_component", None)
            return original.weight.T if type(original) is nn.Linear else None
        weight = getattr(part, "W_O" if is_attention else "W_out", None)
        return weight.flatten(0, -2) if isinstance(weight, Tensor) and weight.is_floating_point() else None

    def norm_after(self, hook_point: str) -> Callable[[Tensor], Tensor] | None:
        """See ``AnalysisBackend.norm_after``."""
        block, is_attention = self._block_of(hook_point)
        norm = getattr(block, "ln1_post" if is_attention else "ln2_post", None)
        return norm and _of_vectors(norm)

    def norms(self) -> Sequence[NormAt]:
        """See ``AnalysisBackend.norms``."""
        return [
            NormAt(before, after, _of_vectors(norm), divided if divided in self._points else None)
            for before, divided, after, norm in norms_of(self._model)
        ]

    def _block_of(self, hook_point: str) -> tuple[nn.Module, bool]:
        """The block of an ``attn_z`` or ``mlp_act``, and whether it is the former."""
        layer, part = split_layer(hook_point) or (0, hook_point)
        block: nn.Module = self._model.blocks[layer]
        return block, part == ATTN_Z

    def create_replay(self) -> ReplayEngine:
        """The replay of a bridge or of a hooked transformer."""
        if self._is_bridge:
            return BridgeReplay(self)
        from interpretune_tlens.hooked.replay import HookedReplay

        return HookedReplay(self)

    @contextlib.contextmanager
    def hooked(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Hooks on the model's hook points for the duration of a block."""
        with contextlib.ExitStack() as stack:
            for name, edit in edits.items():
                layer, part = split_layer(name) or (0, name)
                if part == ATTN_PATTERN:
                    point = self._points[f"blocks.{layer}.attn.hook_pattern"]
                    stack.enter_context(hooked_point(point, _of_heads_last(edit)))
                    continue
                hooked = self._canonical.get(name) or self._around_norms.get(name)
                stack.enter_context(hooked_point(self._points[name], edit) if hooked is None else hooked(edit))
            yield


def _of_vectors(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda vectors: norm(vectors.unsqueeze(1)).squeeze(1)


def _of_heads_last(edit: Edit) -> Edit:
    """An edit of ``[batch, query, heads, key]``, made where the axes are ``[batch, heads, query, key]``."""

    def apply(pattern: Tensor) -> Tensor:
        turned = pattern.transpose(1, 2)
        edited = edit(turned)
        return pattern if edited is turned else edited.transpose(1, 2)

    return apply

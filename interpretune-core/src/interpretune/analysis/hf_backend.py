"""The reference backend: any Hugging Face causal model, with torch forward hooks.

Hook points are the module paths of the model with ``:in`` or ``:out`` appended, and for decoders the usual names:

    blocks.{i}.hook_resid_pre        input of block i
    blocks.{i}.hook_resid_post       output of block i
    blocks.{i}.hook_attn_out         what attention adds to the residual stream
    blocks.{i}.attn.hook_z           attention output of all heads, before the output projection
    blocks.{i}.hook_mlp_out          what the MLP adds to the residual stream
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interpretune.analysis.backend import AnalysisBackend
from interpretune.analysis.inputs import ModelInputs
from interpretune.analysis.latent_model import Edit
from interpretune.analysis.replay.hf_engine import HuggingFaceReplay
from interpretune.quantization import keep_weights_in_place
from interpretune.tokenization import position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
PROJECTION_NAMES = ("o_proj", "c_proj", "out_proj", "dense")
MLP_NAMES = ("mlp", "feed_forward")
POST_ATTENTION_NORM = "post_attention_layernorm"
POST_MLP_NORM = "post_feedforward_layernorm"
"""Where both exist (Gemma 2 and 3), they stand between a sublayer and the residual stream."""


class HuggingFaceBackend(AnalysisBackend):
    """Runs a Hugging Face causal model with edits at the inputs and outputs of its modules."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self._model = model
        keep_weights_in_place(model)
        ids = sorted(set(tokenizer.all_special_ids)) if tokenizer is not None else []
        self._special = torch.tensor(ids, dtype=torch.long, device=model.device)
        self._forward_arguments = set(inspect.signature(model.forward).parameters)
        self._modules = dict(model.named_modules())
        self._aliases = dict(_decoder_aliases(model))

    @property
    def model(self) -> nn.Module:
        """The Hugging Face model."""
        model: nn.Module = self._model
        return model

    @property
    def vocab_size(self) -> int:
        """Number of logits at each position."""
        return int(self._model.config.get_text_config().vocab_size)

    def hook_point_names(self) -> Sequence[str]:
        """The usual names, then every module's input and output."""
        paths = (f"{path}:{side}" for path in self._modules if path for side in ("in", "out"))
        return [*self._aliases, *paths]

    def special_token_ids(self) -> Tensor:
        """Special tokens of the tokenizer."""
        return self._special.to(self.model_device)

    def takes(self, argument: str) -> bool:
        """Whether the model's forward has an argument of this name."""
        return argument in self._forward_arguments

    def place_of(self, hook_point: str) -> tuple[str, str]:
        """Module path and side (``in`` or ``out``) of a known hook point."""
        path, side = self._aliases.get(hook_point, hook_point).rsplit(":", 1)
        return path, side

    @property
    def blocks(self) -> tuple[str, nn.ModuleList] | None:
        """Path and list of the decoder's blocks; None where there is no such list."""
        return decoder_blocks(self._model)

    def run_model(self, inputs: ModelInputs, keep: Tensor | None, **options: Any) -> Tensor:
        """Run the model; see ``AnalysisBackend.run_model``."""
        arguments: dict[str, Any] = {
            "input_ids": inputs.tokens,
            "attention_mask": inputs.attention_mask,
            "use_cache": False,
            **inputs.extra,
            **options,
        }
        if self.takes("position_ids"):
            arguments.setdefault("position_ids", position_ids(inputs.attention_mask))
        narrows = keep is not None and self.takes("logits_to_keep")
        if narrows:
            arguments["logits_to_keep"] = keep
        logits: Tensor = self._model(**arguments).logits
        return logits if keep is None or narrows else logits[:, keep]

    def create_replay(self) -> HuggingFaceReplay:
        """The replay of models whose attention transformers lets us choose."""
        return HuggingFaceReplay(self)

    @contextlib.contextmanager
    def hooked(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Torch forward hooks for the duration of a block."""
        handles = []
        try:
            for name, edit in edits.items():
                path, side = self.place_of(name)
                handles.append(_attach(self._modules[path], side, edit))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _attach(module: nn.Module, side: str, edit: Edit) -> Any:
    """Apply an edit to the first tensor that a module takes or returns."""
    if side == "out":

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

        return module.register_forward_hook(after)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        first = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, first: edit(kwargs[first])}

    return module.register_forward_pre_hook(before, with_kwargs=True)


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList] | None:
    """Path and list of a decoder's blocks; None where no list has as many modules as the configuration has layers."""
    n_layers = model.config.get_text_config().num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return path, module
    return None


def _decoder_aliases(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Usual names of a decoder's places, each with the module path and side that it stands for."""
    found = decoder_blocks(model)
    if found is None:
        return
    path, layers = found
    for i, layer in enumerate(layers):
        block, place = f"blocks.{i}", f"{path}.{i}"
        yield f"{block}.hook_resid_pre", f"{place}:in"
        yield f"{block}.hook_resid_post", f"{place}:out"
        normed = hasattr(layer, POST_MLP_NORM)
        attention = _first(layer, ATTENTION_NAMES)
        if attention is not None:
            projection = _first(getattr(layer, attention), PROJECTION_NAMES)
            if projection is not None:
                yield f"{block}.attn.hook_z", f"{place}.{attention}.{projection}:in"
            yield f"{block}.hook_attn_out", f"{place}.{POST_ATTENTION_NORM if normed else attention}:out"
        mlp = _first(layer, MLP_NAMES)
        if mlp is not None:
            yield f"{block}.hook_mlp_out", f"{place}.{POST_MLP_NORM if normed else mlp}:out"


def _first(module: nn.Module, names: Sequence[str]) -> str | None:
    return next((name for name in names if hasattr(module, name)), None)

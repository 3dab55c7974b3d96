"""The reference backend: any Hugging Face causal model, with torch forward hooks.

Hook points are the canonical names (``interpretune.activations.hook_names``) that a decoder's structure shows, and the
module paths of the model with ``:in`` or ``:out`` appended.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interpretune.activations.edits import CARRIED, IN, OUT, Edit, edited_inputs, edited_output, in_place
from interpretune.activations.hook_names import (
    ATTN_PATTERN,
    HEAD_INPUTS,
    IN_ATTENTION,
    LOGITS,
    canonical,
    in_layer,
    split_layer,
)
from interpretune.activations.inputs import ModelInputs, Points, lone_tokens, probe_inputs
from interpretune.activations.padding_masks import blind_tokens_attend
from interpretune.backends.backend import AnalysisBackend
from interpretune.backends.hugging_face_attention import patterns_edited
from interpretune.backends.hugging_face_hook_points import ATTENTION_NAMES, decoder_blocks, decoder_hook_points
from interpretune.backends.hugging_face_replay import HuggingFaceReplay
from interpretune.backends.measured_norm import NormAt
from interpretune.backends.unembedding import output_of
from interpretune.errors import AnalysisError
from interpretune.models.padding import position_ids
from interpretune.models.quantization import keep_weights_in_place
from interpretune.replay.engine import blocks_below_skipped, positions_only
from interpretune.system.compiled import named_parts, uncompiled
from interpretune.system.model_lock import model_lock
from interpretune.system.placement import input_device, is_spread, offloads, placed_forward, without_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HuggingFaceBackend(AnalysisBackend):
    """Runs a Hugging Face causal model with edits at the inputs and outputs of its modules."""

    passing_state = frozenset({"_model", "_special", "_forward_arguments", "modules", "_locations"})

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self._model = model = uncompiled(model)
        if lacking := without_weights(model):
            raise AnalysisError(lacking)
        keep_weights_in_place(model)
        ids = sorted(set(tokenizer.all_special_ids)) if tokenizer is not None else []
        self._special = torch.tensor(ids, dtype=torch.long, device=input_device(model))
        self._forward_arguments = set(inspect.signature(model.forward).parameters)
        self.modules: Mapping[str, nn.Module] = dict(named_parts(model))
        locations = dict(decoder_hook_points(model))  # modules that blocks share have one path
        self._locations = {name: at for name, at in locations.items() if at.rpartition(":")[0] in self.modules}

    @property
    def model(self) -> nn.Module:
        """The Hugging Face model."""
        return self._model

    @property
    def vocab_size(self) -> int:
        """Number of logits at each position."""
        return int(self._model.config.get_text_config().vocab_size)

    def hook_point_names(self) -> Sequence[str]:
        """The canonical names, then the input and output of every module that runs (lists of modules do not run)."""
        run = [path for path, module in self.modules.items() if path and type(module).forward is not nn.Module.forward]
        return [*self._locations, *(f"{path}:{side}" for path in run for side in (IN, OUT))]

    def pattern_names(self) -> Sequence[str]:
        """Those of models whose attention function can be chosen in transformers."""
        if self.blocks is None or not getattr(self._model, "_supports_attention_backend", False):
            return ()
        names = [in_layer(layer, ATTN_PATTERN) for layer in range(len(self.blocks[1]))]
        return [name for name in names if self._attention_of(name) is not None]

    def head_input_names(self) -> Sequence[str]:
        """Those of the blocks whose patterns are reached."""
        layers = [(split_layer(name) or (0, ""))[0] for name in self.pattern_names()]
        return [in_layer(layer, part) for layer in layers for part in HEAD_INPUTS]

    def _attention_of(self, pattern: str) -> nn.Module | None:
        """The attention module of a block, by the name of something inside it."""
        assert self.blocks is not None, "patterns are those of blocks"
        block = self.blocks[1][(split_layer(pattern) or (0, ""))[0]]
        return next((getattr(block, name) for name in ATTENTION_NAMES if hasattr(block, name)), None)

    @contextlib.contextmanager
    def patterns_edited(self, edits: Mapping[str, Edit]) -> Iterator[Mapping[str, Edit]]:
        """Make the edits inside attention for the duration of a block, which gets the other edits."""
        mine: dict[tuple[nn.Module, str], Edit] = {}
        others = {}
        for name, edit in edits.items():
            part = (split_layer(name) or (0, ""))[1]
            if part not in IN_ATTENTION:
                others[name] = edit
            elif (module := self._attention_of(name)) is not None:
                mine[module, part] = edit
        with patterns_edited(self.model, mine):
            yield others

    def special_token_ids(self) -> Tensor:
        """Special tokens of the tokenizer."""
        return self._special.to(self.model_device)

    def takes(self, argument: str) -> bool:
        """Whether the model's forward has an argument of this name."""
        return argument in self._forward_arguments

    def module_and_side(self, hook_point: str) -> tuple[str, str]:
        """Module path and side (``in``, ``out`` or ``carried``) of a known hook point."""
        path, side = self._locations.get(canonical(hook_point), hook_point).rsplit(":", 1)
        return path, side

    @property
    def blocks(self) -> tuple[str, nn.ModuleList] | None:
        """Path and list of the decoder's blocks; None if there is no such list."""
        return decoder_blocks(self._model)

    def blind_tokens_attend(self, inputs: ModelInputs) -> AbstractContextManager[None]:
        """See ``HookedModel.blind_tokens_attend``."""
        return blind_tokens_attend(
            self._model, lambda: [] if self.blocks is None else list(self.blocks[1]), inputs.attention_mask
        )

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
        here: AbstractContextManager[None] = contextlib.nullcontext()
        if keep is not None and narrows:
            if is_spread(self._model):  # transformers takes the positions where the last block is
                here = positions_only(self._model.get_output_embeddings(), keep.expand(len(inputs), -1))
            else:
                arguments["logits_to_keep"] = keep
        with self.blind_tokens_attend(inputs), here:
            logits: Tensor = self._model(**arguments).logits
        return logits if keep is None or narrows else logits[:, keep]

    def sees_kept_positions_only(self, hook_point: str) -> bool:
        """See ``HookedModel``: the unembedding and what it consists of."""
        head = self._locations.get(LOGITS, ":").rpartition(":")[0]
        path = self._locations.get(canonical(hook_point), hook_point).rpartition(":")[0]  # patterns have none
        return bool(head) and f"{path}.".startswith(f"{head}.")

    def run_above_blocks(self, residual: Tensor, edits: Mapping[str, Edit]) -> Tensor:
        """See ``AnalysisBackend.run_above_blocks``; no block runs."""
        if self.blocks is None:
            return super().run_above_blocks(residual, edits)
        blocks, hidden = list(self.blocks[1]), residual.unsqueeze(1)
        _ = self._as_named  # found out while all blocks run
        with (
            model_lock(self.model),
            blocks_below_skipped(blocks, len(blocks), hidden, in_tuple=self._blocks_return_tuples),
        ):
            return self.forward(lone_tokens(residual), edits)[:, 0]

    def run_from_block(
        self, inputs: ModelInputs, start: int, residual: Tensor, edits: Mapping[str, Edit], points: Points
    ) -> Tensor:
        """See ``AnalysisBackend.run_from_block``; blocks below do not run."""
        if self.blocks is None:
            return super().run_from_block(inputs, start, residual, edits, points)
        _ = self._as_named  # found out while all blocks run
        in_tuple = self._blocks_return_tuples
        with (
            model_lock(self.model),
            blocks_below_skipped(list(self.blocks[1]), start, residual, in_tuple=in_tuple),
        ):
            return self.forward(inputs, edits, points)

    @functools.cached_property
    def _blocks_return_tuples(self) -> bool:
        assert self.blocks is not None, "asked of models with blocks"
        found: list[bool] = []
        block = self.blocks[1][-1]
        with model_lock(self.model), torch.no_grad():
            handle = block.register_forward_hook(lambda _, __, output: found.append(isinstance(output, tuple)))
            try:
                self.forward(probe_inputs(self.model_device), {})
            finally:
                handle.remove()
        return found[0]

    def written_by(self, hook_point: str, activations: Tensor) -> Tensor:
        """See ``AnalysisBackend.written_by``; the projection's own module."""
        return _results_at_home(self.modules[self.module_and_side(hook_point)[0]])(activations)

    def projection(self, hook_point: str) -> Tensor | None:
        """See ``AnalysisBackend.projection``."""
        module = self.modules[self.module_and_side(hook_point)[0]]
        if type(module) not in (nn.Linear, Conv1D) or placed_forward(module) is not None or offloads(module):
            return None
        weight: Tensor = module.weight  # type: ignore[assignment]
        if weight.device != self.model_device:
            return None
        return weight.T if type(module) is nn.Linear else weight

    def norm_after(self, hook_point: str) -> Callable[[Tensor], Tensor] | None:
        """See ``AnalysisBackend.norm_after``."""
        output = self.module_and_side(output_of(hook_point))[0]
        inside = self.module_and_side(hook_point)[0].startswith(f"{output}.")
        return None if inside else _results_at_home(self.modules[output])

    def norms(self) -> Sequence[NormAt]:
        """See ``AnalysisBackend.norms``; modules of classes that are called norms."""
        if self.blocks is None:
            return ()
        above = self.blocks[0].rpartition(".")[0]
        return [
            NormAt(f"{path}:{IN}", f"{path}:{OUT}", _results_at_home(module))
            for path, module in self.modules.items()
            if "Norm" in type(module).__name__
            and path.startswith(f"{above}." if above else "")
            and not {*ATTENTION_NAMES} & {*path.split(".")}
        ]

    def create_replay(self) -> HuggingFaceReplay:
        """The replay of models whose attention function can be chosen in transformers."""
        return HuggingFaceReplay(self)

    @contextlib.contextmanager
    def hooked(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Torch forward hooks for the duration of a block."""
        handles: list[Any] = []

        def remove() -> None:
            for handle in handles:
                handle.remove()

        try:
            try:
                with self.patterns_edited(edits) as others:
                    for name, edit in others.items():
                        path, side = self.module_and_side(name)
                        handles.append(_attach(self.modules[path], side, edit))
                    yield
            finally:
                remove()
        finally:
            remove()  # an interrupt may have come in the first


def _results_at_home(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A module that gives its results where its inputs are; accelerate moves these to the module."""
    return lambda activations: module(activations).to(activations.device)


def _attach(module: nn.Module, side: str, edit: Edit) -> Any:
    """Apply an edit to the first tensor that a module takes or returns."""
    if side == OUT:
        return module.register_forward_hook(lambda _, args, output: edited_output(output, edit))
    made = in_place(edit) if side == CARRIED else edit

    def before(_: nn.Module, args: Any, kwargs: Any = None) -> Any:
        # torch leaves kwargs out where another thread takes the hook off at this moment
        return None if kwargs is None else edited_inputs(args, kwargs, made)

    return module.register_forward_pre_hook(before, with_kwargs=True)

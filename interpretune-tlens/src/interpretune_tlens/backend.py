"""The analysis backend of TransformerLens models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interpretune.analysis import AnalysisBackend, Edit, ModelInputs
from interpretune.errors import HookPointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TransformerLensBackend(AnalysisBackend):
    """Runs a ``TransformerBridge`` or a ``HookedTransformer`` with edits at its hook points, aliases included."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self._model: Any = model
        known: Any = tokenizer if tokenizer is not None else self._model.tokenizer
        ids = sorted(set(known.all_special_ids)) if known is not None else []
        self._special = torch.tensor(ids, dtype=torch.long)
        wrapped = getattr(model, "original_model", None)
        self._narrows = wrapped is not None and "logits_to_keep" in inspect.signature(wrapped.forward).parameters

    @property
    def model(self) -> nn.Module:
        """The TransformerLens model."""
        model: nn.Module = self._model
        return model

    @property
    def vocab_size(self) -> int:
        """Number of logits at each position."""
        cfg = self._model.cfg
        return int(cfg.d_vocab_out if getattr(cfg, "d_vocab_out", -1) > 0 else cfg.d_vocab)

    def hook_point_names(self) -> Sequence[str]:
        """All names that TransformerLens resolves for this model."""
        return list(self._model.hook_dict)

    def special_token_ids(self) -> Tensor:
        """Special tokens of the session's tokenizer, or of the model's where there is no session."""
        return self._special.to(self.model_device)

    def forward(self, inputs: ModelInputs, edits: Mapping[str, Edit], positions: Tensor | None = None) -> Tensor:
        """Run the model; see ``AnalysisBackend.forward``.

        TransformerLens skips hooks on names that it does not know, without a word: names are checked before the run,
        and that every edit was made after it.
        """
        self.check_hook_points(list(edits))
        fired: set[str] = set()

        def hook_for(name: str, edit: Edit) -> Any:
            def run_edit(activations: Tensor, hook: Any) -> Tensor:
                fired.add(name)
                return edit(activations)

            return run_edit

        arguments: dict[str, Any] = {"attention_mask": inputs.attention_mask, **inputs.extra}
        columns = positions
        if positions is not None and self._narrows:
            arguments["logits_to_keep"], columns = positions.unique(return_inverse=True)
        hooks = [(name, hook_for(name, edit)) for name, edit in edits.items()]
        logits: Tensor = self._model.run_with_hooks(inputs.tokens, fwd_hooks=hooks, **arguments)
        if missed := edits.keys() - fired:
            raise HookPointError(f"The model never ran the hook points {sorted(missed)} in its forward.")
        return logits if columns is None else logits[torch.arange(len(inputs), device=logits.device), columns]

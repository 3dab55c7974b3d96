"""The model as this adapter runs it."""

from __future__ import annotations

import inspect
from typing import Any

from interpretune.models import position_ids
from torch import Tensor, nn


class AdapterNameModel(nn.Module):
    """Runs a Hugging Face causal model; put in its place what your library makes of one.

    Attributes:
        hf_model: The Hugging Face model.
        config: Its configuration, in which core looks for the longest prompt.
    """

    def __init__(self, hf_model: Any) -> None:
        super().__init__()
        self.hf_model = hf_model
        self.config = hf_model.config

    def forward(self, tokens: Tensor, attention_mask: Tensor, **rest: Any) -> Tensor:
        """Logits ``[batch, pos, vocab]`` of tokens ``[batch, pos]``.

        Positions count real tokens only, so that padding on the left changes nothing.
        """
        arguments = {"input_ids": tokens, "attention_mask": attention_mask, **rest}
        if "position_ids" in inspect.signature(self.hf_model.forward).parameters:
            arguments.setdefault("position_ids", position_ids(attention_mask))
        logits: Tensor = self.hf_model(**arguments).logits
        return logits

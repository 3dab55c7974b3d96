"""Lets classification heads of decoders read the answer position, for either padding side and any padding id."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interpretune.errors import ConfigurationError
from interpretune.models.padding import answer_positions
from interpretune.system.compiled import uncompiled
from interpretune.system.own_context import OwnContext

HEADS = ("score", "classifier")
"""Names under which transformers classifiers keep their head; a decoder applies it at every position."""


def classification_head(model: nn.Module) -> nn.Module | None:
    """The head of a model that classifies sequences; None for every other model.

    Raises:
        ConfigurationError: The model has a decoder beside its encoder, and answers from the decoder's padding.
    """
    model = uncompiled(model)
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return None
    name = next((name for name in HEADS if isinstance(getattr(model, name, None), nn.Module)), None)
    if name == HEADS[0] and getattr(model.config, "is_encoder_decoder", False):
        raise ConfigurationError(
            f"{type(model).__name__} is an encoder with a decoder: it finds its answer by the id of padding in what "
            "the decoder reads, which attention_mask does not describe. Classify with a decoder or an encoder alone "
            "(is_encoder_decoder=False, where the class can do without its decoder)."
        )
    return getattr(model, name) if name is not None else None


@contextlib.contextmanager
def pooled_at_answer(model: nn.Module, tokens: Tensor, attention_mask: Tensor | None) -> Iterator[None]:
    """Have the classification head of a decoder answer from the last token that is not padding.

    transformers takes the last token whose id is not that of padding. If a row ends in a real token with that id (a
    closing ``<|endoftext|>`` that is also the padding token), that is one token too early; and a batch of several rows
    fails if the model has no padding id. Here the mask decides: the head's output at the answer position is copied to
    every position, whichever one the model then takes. Forwards of other threads and contexts are unaffected.

    Args:
        model: Any model; encoders, and models whose head does not give logits at every position, are left alone.
        tokens: ``[batch, pos]``.
        attention_mask: ``[batch, pos]``; None: nothing is padding.
    """
    head = classification_head(model)
    if head is None:
        yield
        return
    positions = answer_positions(torch.ones_like(tokens) if attention_mask is None else attention_mask)

    def spread(_: nn.Module, args: Any, logits: Tensor) -> Tensor:
        if not here.is_here() or logits.shape[:-1] != tokens.shape:
            return logits
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, positions.to(logits.device)].unsqueeze(1).expand_as(logits)

    with OwnContext() as here:
        handle = head.register_forward_hook(spread)
        try:
            yield
        finally:
            handle.remove()


def name_padding(model: nn.Module, pad_token_id: int | None) -> None:
    """Set the tokenizer's padding id in the configuration of a classifier without one; transformers needs it."""
    if classification_head(model) is None or pad_token_id is None:
        return
    configuration: Any = model.config
    for config in (configuration, configuration.get_text_config()):
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = pad_token_id

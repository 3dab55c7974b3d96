"""Tokenizers of sessions as TransformerLens takes them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from interpretune import ITConfig, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def tokenizer_of(cfg: ITConfig) -> Iterator[PreTrainedTokenizerBase | None]:
    """The tokenizer of a configuration, if it has one.

    One in memory is in files meanwhile: TransformerLens loads each tokenizer again, by its name.
    """
    if cfg.tokenizer is None:
        yield load_tokenizer(cfg) if cfg.names_a_tokenizer else None
        return
    with tempfile.TemporaryDirectory(prefix="tokenizer-") as folder:
        cfg.tokenizer.save_pretrained(folder)
        yield load_tokenizer(replace(cfg, tokenizer=None, tokenizer_name=folder))

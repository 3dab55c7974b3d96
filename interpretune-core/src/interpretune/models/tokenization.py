"""Tokenizers, attention masks, and the answer position."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchEncoding

from interpretune.errors import ConfigurationError, DataError, ModelLoadError, TokenizationError
from interpretune.models.row_columns import collate_row_columns, without_row_columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interpretune.config.shared import ITSharedConfig

ATTENTION_MASK = "attention_mask"
"""Name of the attention mask in batches."""
INPUT_NAMES = ("input_ids", "input")
"""Names of the tokens in batches: Hugging Face's, and that of models whose argument is ``input``."""

CONTEXT_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "n_ctx")


def context_length(model: Any) -> int | None:
    """Largest number of tokens that a model takes, if its configuration says so."""
    configs = (getattr(model, "config", None), getattr(model, "cfg", None))
    found = [getattr(config, name, None) for config in configs for name in CONTEXT_LENGTH_NAMES]
    return next((length for length in found if isinstance(length, int)), None)


def load_tokenizer(cfg: ITSharedConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer that a configuration describes.

    The tokenizer always produces attention masks, whatever ``model_input_names`` says: where padding and BOS share an
    id, a mask cannot be recovered from the tokens.

    Raises:
        ModelLoadError: The tokenizer cannot be found or loaded.
    """
    from interpretune.models.loading import resolve_source  # avoids a cycle: models need tokenizers too

    if not cfg.tokenizer_name and not cfg.model_name_or_path:
        raise ConfigurationError(
            "No tokenizer is configured. Set model_name_or_path or tokenizer_name in shared_cfg to a folder or id."
        )
    source = str(cfg.tokenizer_name or resolve_source(cfg.model_name_or_path, cfg.cache_dir))
    options = dict(cfg.tokenizer_kwargs)
    input_names = options.pop("model_input_names", None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=cfg.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"No tokenizer can be loaded from {source!r}: {error}. Give `model_name_or_path` or `tokenizer_name` a "
            "local folder with the tokenizer's files, or check the network."
        ) from error
    if input_names:
        tokenizer.model_input_names = list(input_names)
    if ATTENTION_MASK not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, ATTENTION_MASK]
    for name, token_id in cfg.tokenizer_id_overrides.items():
        token = tokenizer.convert_ids_to_tokens(token_id)
        if token is None or not name.endswith("_id"):
            raise TokenizationError(
                f"tokenizer_id_overrides sets {name} to {token_id}, which this tokenizer of {len(tokenizer)} tokens "
                "cannot do. Use names such as 'pad_token_id' and ids of the vocabulary."
            )
        setattr(tokenizer, name.removesuffix("_id"), token)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise TokenizationError(
                f"The tokenizer of {source!r} has neither a padding nor an end token. Name one: "
                "tokenizer_id_overrides={'pad_token_id': ...}."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def sanitize_input_name(model_input_names: Sequence[str], features: MutableMapping[str, Any]) -> Any:
    """Rename ``input_ids`` to the first of ``model_input_names``, for models whose argument has another name.

    Args:
        model_input_names: ``tokenizer.model_input_names``.
        features: What the tokenizer returned; changed in place.

    Returns:
        ``features``.
    """
    wanted = model_input_names[0]
    if wanted != "input_ids" and "input_ids" in features:
        features[wanted] = features.pop("input_ids")
    return features


def tokens_of(batch: Mapping[str, Any]) -> tuple[str, Tensor]:
    """The tokens of a batch, ``[batch, pos]``, and their name in it.

    Raises:
        DataError: The batch has no tokens.
    """
    for name in INPUT_NAMES:
        if name in batch:
            return name, batch[name]
    raise DataError(f"The batch has no tokens: expected one of {INPUT_NAMES}, found {sorted(batch)}.")


def mask_of(batch: Mapping[str, Any]) -> Tensor:
    """The attention mask of a batch, ``[batch, pos]``, 1 for real tokens.

    Raises:
        DataError: The batch has none, or a row without any real token.
    """
    if ATTENTION_MASK not in batch:
        raise DataError(
            f"The batch has no {ATTENTION_MASK}, and padding cannot be told from the tokens where BOS and "
            f"padding share an id. Keep the tokenizer's {ATTENTION_MASK} in the data set. Found {sorted(batch)}."
        )
    mask: Tensor = batch[ATTENTION_MASK]
    empty = (mask.sum(dim=-1) == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"Rows {empty} of the batch have no token that is not padding.")
    return mask


def answer_positions(attention_mask: Tensor) -> Tensor:
    """Index of the last non-padding token of each row, for either padding side.

    Args:
        attention_mask: ``[batch, pos]``, 1 for real tokens.

    Returns:
        ``[batch]``, int64.
    """
    width = attention_mask.shape[-1]
    return width - 1 - attention_mask.flip(-1).to(torch.int64).argmax(dim=-1)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count only real tokens, ``[batch, pos]``; no real token uses the positions of padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def real_tokens(tokens: Tensor, attention_mask: Tensor) -> list[Tensor]:
    """The tokens of each row without padding, ``[pos]`` each, from ``[batch, pos]`` and its mask."""
    return [row[keep] for row, keep in zip(tokens, attention_mask.bool(), strict=True)]


def token_texts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tensor]) -> list[list[str]]:
    """The text of each token of each row."""
    return [[tokenizer.decode([token]) for token in row.tolist()] for row in rows]


def pad_left(tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of each row to its left, as generation needs it.

    Args:
        tokens: ``[batch, pos]``.
        attention_mask: ``[batch, pos]``.

    Returns:
        Tokens and mask of the same shapes; real tokens keep their order.
    """
    order = attention_mask.to(torch.int64).argsort(dim=-1, stable=True)
    return tokens.gather(-1, order), attention_mask.gather(-1, order)


def single_token_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """The token of each answer word.

    Raises:
        TokenizationError: A word is not one token in this tokenizer, or is not in its vocabulary; the message shows its
            pieces.
    """
    ids = []
    for word in words:
        pieces = tokenizer.encode(word, add_special_tokens=False)
        if getattr(tokenizer, "unk_token_id", None) in pieces and str(tokenizer.unk_token) not in word:
            raise TokenizationError(
                f"The answer {word!r} is not in this tokenizer's vocabulary: it becomes "
                f"{tokenizer.convert_ids_to_tokens(pieces)}. Use a word that is one token."
            )
        if len(pieces) != 1:
            shown = tokenizer.convert_ids_to_tokens(pieces)
            near = [variant for variant in (word.strip(), f" {word.strip()}") if variant != word]
            single = [v for v in near if len(tokenizer.encode(v, add_special_tokens=False)) == 1]
            raise TokenizationError(
                f"The answer {word!r} is {len(pieces)} tokens in this tokenizer: {shown}. "
                + (f"{single[0]!r} is one token; use it." if single else "Use a word that is one token.")
            )
        ids.append(int(pieces[0]))
    if len(set(ids)) != len(ids):
        raise TokenizationError(f"The answers {list(words)} share a token: ids {ids}. Use words that differ.")
    return ids


class PaddingCollator:
    """Joins rows into a batch: pads to the longest row on the tokenizer's side, and drops columns of only padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchEncoding:
        """Collate rows.

        Args:
            rows: Mappings with tokens, ``attention_mask`` and, optionally, ``labels``; rows of questions have more.

        Returns:
            Tensors: tokens and mask ``[batch, pos]``, every other column ``[batch, ...]``; see ``row_columns``.

        Raises:
            DataError: A row has no attention mask.
        """
        if any(ATTENTION_MASK not in row for row in rows):
            raise DataError(
                f"A row has no {ATTENTION_MASK} (columns {sorted(rows[0])}), and padding cannot be told from "
                "the tokens where BOS and padding share an id. Keep it when you prepare the data set."
            )
        main_input = self.tokenizer.model_input_names[0]
        padded_names = {main_input, *self.tokenizer.model_input_names}
        batch = self.tokenizer.pad(
            {name: [row[name] for row in rows] for name in rows[0] if name in padded_names},
            padding=True,
            return_tensors="pt",
        )
        used = batch[ATTENTION_MASK].any(dim=0)
        for name in list(batch):
            batch[name] = batch[name][:, used]
        own = collate_row_columns(rows, batch[ATTENTION_MASK], batch[main_input])
        for name in without_row_columns(rows[0]) if own else rows[0]:
            if name not in padded_names:
                column = torch.tensor([row[name] for row in rows])
                batch[name] = column.long() if name == "labels" and column.dtype == torch.bool else column
        batch.update(own)
        return batch

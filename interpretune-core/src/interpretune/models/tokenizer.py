"""Tokenizers: how they are loaded, the inputs that they make, the text of tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from interpretune.errors import ConfigurationError, ModelLoadError, TokenizationError
from interpretune.models.padding import ATTENTION_MASK
from interpretune.system.offered import TOKENIZERS, addressed

if TYPE_CHECKING:
    from interpretune.config.shared import ITSharedConfig

CONTEXT_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "n_ctx")


def context_length(model: Any) -> int | None:
    """Largest number of tokens that a model takes, if its configuration says so."""
    configs = (getattr(model, "config", None), getattr(model, "cfg", None))
    found = [getattr(config, name, None) for config in configs for name in CONTEXT_LENGTH_NAMES]
    return next((length for length in found if isinstance(length, int)), None)


def load_tokenizer(cfg: ITSharedConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer that a configuration describes, or copy the one that it has in memory.

    The tokenizer always produces attention masks, whatever ``model_input_names`` says: where padding and BOS share an
    id, a mask cannot be recovered from the tokens.

    Raises:
        ConfigurationError: No tokenizer is configured, or one in memory beside the name of one.
        AdapterError: ``tokenizer_name`` is ``name:address`` of a loader that cannot be used.
        ModelLoadError: The tokenizer cannot be found or loaded.
    """
    from interpretune.models.loading import resolve_source  # avoids a cycle: models need tokenizers too

    if not cfg.names_a_tokenizer:
        raise ConfigurationError(
            "No tokenizer is configured. Set model_name_or_path or tokenizer_name in shared_cfg to a folder or id, or "
            "tokenizer to one in memory."
        )
    beside = [name for name in ("tokenizer_name", "tokenizer_kwargs") if getattr(cfg, name)]
    if cfg.tokenizer is not None and beside:
        raise ConfigurationError(
            f"The configuration's tokenizer is one in memory ({type(cfg.tokenizer).__name__}), which is given beside "
            f"{' and '.join(beside)}. Leave one of the two out."
        )
    options = dict(cfg.tokenizer_kwargs)
    input_names = options.pop("model_input_names", None)
    tokenizer: PreTrainedTokenizerBase | None
    if cfg.tokenizer is not None:
        source = type(cfg.tokenizer).__name__
        tokenizer = copy.deepcopy(cfg.tokenizer)  # what follows changes it
    else:
        source = str(cfg.tokenizer_name or resolve_source(cfg.model_name_or_path, cfg.cache_dir))
        tokenizer = _offered(source, options)
        if tokenizer is None:
            tokenizer = _from_pretrained(source, cfg, options)
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


def _offered(source: str, options: Mapping[str, Any]) -> PreTrainedTokenizerBase | None:
    """What a loader of an installed package gives for ``name:address``; None: the name is of none."""
    if (found := addressed(TOKENIZERS, source)) is None:
        return None
    offer, address = found
    tokenizer = offer.call(ModelLoadError, address, **options)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelLoadError(
            f"The loader of tokenizers {offer} returned a {type(tokenizer).__name__}; it must return a tokenizer of "
            "transformers, such as a PreTrainedTokenizerFast around one of the library tokenizers."
        )
    return tokenizer


def _from_pretrained(source: str, cfg: ITSharedConfig, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=cfg.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        loaders = ", ".join(TOKENIZERS.offered())
        raise ModelLoadError(
            f"No tokenizer can be loaded from {source!r}: {error}. Give `model_name_or_path` or `tokenizer_name` a "
            "local folder with the tokenizer's files, or check the network."
            + (f" Installed packages load tokenizers for: {loaders}." if loaders else "")
        ) from error


def sanitize_input_name(model_input_names: Sequence[str], features: MutableMapping[str, Any]) -> Any:
    """Rename ``input_ids`` to the first of ``model_input_names``, for models whose argument has another name.

    Args:
        model_input_names: ``tokenizer.model_input_names``.
        features: What the tokenizer returned; changed in place.
    """
    wanted = model_input_names[0]
    if wanted != "input_ids" and "input_ids" in features:
        features[wanted] = features.pop("input_ids")
    return features


def token_texts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tensor]) -> list[list[str]]:
    """The text of each token of each row."""
    return [[tokenizer.decode([token]) for token in row.tolist()] for row in rows]

"""Reads rows of text and labels, and turns them into tokenized prompts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from interpretune.config.datamodule import ITDataModuleConfig
from interpretune.errors import ConfigurationError, DataError, TokenizationError
from interpretune.models.tokenizer import sanitize_input_name
from interpretune.questions.json_lines import json_table
from interpretune.questions.splits import load_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interpretune.config.datamodule import PromptConfig

UNBOUNDED = 1_000_000
"""Tokenizers without a known context length report a number far above this one."""


def read_rows(cfg: ITDataModuleConfig) -> dict[str, datasets.Dataset]:
    """Read the splits of ``cfg.data`` and check their columns and labels.

    Raises:
        DataError: The source cannot be read, lacks a column, or has labels outside ``range(num_labels)``.
    """
    if not cfg.text_fields:
        raise ConfigurationError("ITDataModuleConfig.text_fields is empty: name the columns that make up the prompt.")
    splits = {}
    for split, dataset in _load(cfg.data).items():
        rows = dataset.select(range(min(cfg.limit_rows, len(dataset)))) if cfg.limit_rows is not None else dataset
        source = cfg.data[split] if isinstance(cfg.data, Mapping) else cfg.data
        where = f"Split {split!r} of {source}"
        wanted = (*cfg.text_fields, cfg.label_field)
        missing = [name for name in wanted if name not in rows.column_names]
        if missing:
            raise DataError(
                f"{where} has no column {', '.join(map(repr, missing))}: expected {list(wanted)}, found "
                f"{rows.column_names}. Set text_fields and label_field to the columns of your data."
            )
        if len(rows) == 0:
            raise DataError(f"{where} has no rows.")
        if cfg.num_labels is not None and all(label == -1 for label in rows[cfg.label_field]):
            continue  # hubs mark the hidden labels of a test split with -1
        _check_labels(rows[cfg.label_field], cfg.num_labels, where)
        splits[str(split)] = rows
    if not splits:
        raise DataError(f"{_name(cfg.data)} has no split with labels.")
    return splits


def _load(source: Any) -> Mapping[str, datasets.Dataset]:
    if isinstance(source, Mapping):
        return {str(split): json_table(Path(str(file)).expanduser()) for split, file in source.items()}
    return load_splits(source)


def _name(source: Any) -> str:
    return ", ".join(dict.fromkeys(map(str, source.values()))) if isinstance(source, Mapping) else str(source)


def _check_labels(labels: Any, num_labels: int | None, where: str) -> None:
    wrong = {
        row: str(label)
        for row, label in enumerate(labels)
        if not isinstance(label, int) or label < 0 or (num_labels is not None and label >= num_labels)
    }
    if wrong:
        expected = f"integers in range({num_labels})" if num_labels is not None else "integers from 0"
        raise DataError(
            f"{where} has labels outside the mapping: {', '.join(sorted(set(wrong.values()))[:10])}; expected "
            f"{expected}. The first is in row {min(wrong)}."
        )


def task_prompt(row: Mapping[str, Any], text_fields: tuple[str, ...], prompt_cfg: PromptConfig) -> str:
    """Join the text fields of a row as ``PromptConfig`` says; a full stop at the end of the last field is dropped."""
    texts = [str(row[name]).strip() for name in text_fields]
    if len(texts) > 1 and prompt_cfg.question_suffix:
        texts[-1] = texts[-1].removesuffix(".")
    return prompt_cfg.ctx_question_join.join(texts) + prompt_cfg.question_suffix


def longest_prompt(
    cfg: ITDataModuleConfig, tokenizer: PreTrainedTokenizerBase, context_length: int | None
) -> int | None:
    """Most tokens of a prompt; None: nobody knows a limit."""
    limits = (cfg.max_length, context_length, tokenizer.model_max_length)
    return min((length for length in limits if length is not None and length < UNBOUNDED), default=None)


def encode_prompts(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    cfg: ITDataModuleConfig,
    split: str,
    context_length: int | None = None,
) -> datasets.Dataset:
    """Add tokens, mask and labels to rows; ``TokenizationError`` if a prompt is empty or longer than it may be."""
    text_fields = tuple(cfg.text_fields or ())
    limit = longest_prompt(cfg, tokenizer, context_length)

    def encode(row: Mapping[str, Any], index: int) -> dict[str, Any]:
        absent = [name for name in text_fields if row[name] is None]
        if absent:
            raise DataError(f"Row {index} of split {split!r} has no text in its field {', '.join(map(repr, absent))}.")
        if not any(str(row[name]).strip() for name in text_fields):
            raise TokenizationError(f"Row {index} of split {split!r} is empty: its fields {text_fields} hold no text.")
        text = cfg.prompt_cfg.model_chat_template_fn(
            task_prompt=task_prompt(row, text_fields, cfg.prompt_cfg),
            tokenization_pattern=cfg.cust_tokenization_pattern,
        )
        features = dict(tokenizer(text))
        length = len(features["input_ids"])
        if limit is not None and length > limit:
            raise TokenizationError(
                f"The prompt of row {index} of split {split!r} has {length} tokens; the limit is {limit}. Shorten it, "
                "drop the row, or raise ITDataModuleConfig.max_length if the model's context allows it."
            )
        features["labels"] = int(row[cfg.label_field])  # True is 1
        return dict(sanitize_input_name(tokenizer.model_input_names, features))

    options = {name: value for name, value in cfg.prepare_data_map_cfg.items() if name != "batched"}
    try:
        inspect.signature(dataset.map).bind(encode, with_indices=True, load_from_cache_file=False, **options)
    except TypeError as error:
        raise ConfigurationError(
            f"ITDataModuleConfig.prepare_data_map_cfg does not fit: {error}. It takes arguments of Dataset.map."
        ) from error
    return dataset.map(encode, with_indices=True, load_from_cache_file=False, **options)

"""Configuration of the data module and of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from interpretune.config.checked import Between, CheckedConfig, Positive
from interpretune.config.shared import ITSharedConfig
from interpretune.errors import ConfigurationError, ConfigurationFieldError


@dataclass(kw_only=True)
class PromptConfig(CheckedConfig, checks_types=True):
    """How the text fields of a row become a prompt: first field + ``ctx_question_join`` + second field + suffix.

    Attributes:
        ctx_question_join: Between the first and the second text field.
        question_suffix: After the last text field, without the full stop that ends it.
    """

    ctx_question_join: str = "\n"
    question_suffix: str = ""

    def model_chat_template_fn(self, task_prompt: str, tokenization_pattern: str | None = None) -> str:
        """Wrap a task prompt in the pattern of a chat model.

        Args:
            task_prompt: The prompt of one row.
            tokenization_pattern: Text with the placeholder ``{task_prompt}``; None: the prompt itself, stripped.

        Raises:
            ConfigurationError: The pattern lacks the placeholder.
        """
        if tokenization_pattern is None:
            return task_prompt.strip()
        if "{task_prompt}" not in tokenization_pattern:
            raise ConfigurationError(
                f"The tokenization pattern {tokenization_pattern!r} has no placeholder {{task_prompt}}. "
                'Write it where the prompt belongs, for example "<|user|>{task_prompt}<|assistant|>".'
            )
        return tokenization_pattern.replace("{task_prompt}", task_prompt.strip())


@dataclass(kw_only=True)
class ITDataModuleConfig(ITSharedConfig, checks_types=True):
    """Configuration of an ``ITDataModule``; subclass it with ``@dataclass(kw_only=True)`` to add fields.

    Attributes:
        data: What the default ``prepare_data`` reads: a mapping from split to JSONL file (``train``, ``validation``,
            ``test``), a JSONL file alone, which becomes ``validation``, a folder saved by ``datasets``, or a hub data
            set and its subset such as ``super_glue/rte``.
        rows: In the place of ``data``: rows of a question, with answers of their own. A list, a frame, a data set, a
            file or a hub id (see ``interpretune.questions.read_rows``), the name of a task, or a mapping from split to
            such. Rows alone become ``validation``; a task has ``train`` too. Fields that make prompts or choose columns
            have no effect on them.
        answers: Of ``rows``: column of the answers, or the answers themselves, for all rows or by row; empty for none.
        correct: Of ``rows``: column of the correct answers, or the index or text of the correct one, or one a row.
        text_fields: Columns that make up the prompt.
        label_field: Column of the integer labels.
        num_labels: Number of labels; rows with a label outside ``range(num_labels)`` are refused.
        prompt_cfg: How text fields become prompts.
        cust_tokenization_pattern: Chat pattern for ``PromptConfig.model_chat_template_fn``.
        max_length: Longest prompt in tokens; None: the model's context length, if the tokenizer knows it.
        train_batch_size: Rows in a training batch.
        eval_batch_size: Rows in any other batch.
        signature_columns: Columns to keep; None: those that the model's forward takes. ``attention_mask`` and
            ``labels`` always stay.
        prepare_data_map_cfg: Passed to ``datasets.Dataset.map``.
        dataset_path: Folder of the prepared data; None: a folder in the cache named by everything that changes it.
        force_prepare_data: Prepare the data even if the cache has this data set.
        dataloader_kwargs: Passed to every ``DataLoader``.
        limit_rows: Use at most this many rows of each split.
    """

    data: str | Path | Mapping[str, str | Path] | None = None
    rows: Any = None
    answers: str | Sequence[Any] = "answers"
    correct: str | int | Sequence[Any] = "correct"
    text_fields: tuple[str, ...] | None = None
    label_field: str = "label"
    num_labels: Positive | None = None
    prompt_cfg: PromptConfig = field(default_factory=PromptConfig)
    cust_tokenization_pattern: str | None = None
    max_length: Positive | None = None
    train_batch_size: Positive = 8
    eval_batch_size: Positive = 8
    signature_columns: list[str] | None = None
    prepare_data_map_cfg: dict[str, Any] = field(default_factory=dict)
    dataset_path: str | Path | None = None
    force_prepare_data: bool = False
    dataloader_kwargs: dict[str, Any] = field(default_factory=dict)
    limit_rows: Annotated[int, Between(0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        beside = [name for name in ("data", "text_fields") if getattr(self, name) is not None]
        if self.rows is not None and beside:
            raise ConfigurationFieldError(
                f"{type(self).__qualname__}.rows is given beside {' and '.join(beside)}. Rows have prompts of their "
                "own; leave one of the two out."
            )

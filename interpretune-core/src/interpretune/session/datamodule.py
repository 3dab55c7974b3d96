"""The data module: prepares, caches and serves a tokenized data set."""

from __future__ import annotations

import inspect
import secrets
import shutil
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import torch
from torch.utils.data import DataLoader

from interpretune.config.datamodule import ITDataModuleConfig
from interpretune.errors import ConfigurationError, DataError, NotReusedWarning, UnknownContentError
from interpretune.hashing.content_hash import WHAT_TO_DO, ContentHash
from interpretune.models.padding import ATTENTION_MASK, PaddingCollator
from interpretune.models.tokenizer import load_tokenizer
from interpretune.questions.offered_rows import fetched_once, offered_splits, splits_fingerprint
from interpretune.session.prepared_content import prepared_content
from interpretune.session.prompts import encode_prompts, longest_prompt, read_rows
from interpretune.session.question_rows import encode_question_rows, read_question_rows, rows_fingerprint, rows_of
from interpretune.system.cache_folder import build_once, cache_root
from interpretune.system.plain_files import file_sha256
from interpretune.system.ranks import rank_and_processes

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from interpretune.plugins.stack import ExecutionContext
    from interpretune.questions import PromptRow
    from interpretune.session.module import ITModule

ALWAYS_KEPT = (ATTENTION_MASK, "labels")


class ITDataModule:
    """A tokenized data set with train, validation, test and predict loaders.

    The default ``prepare_data`` reads rows of a question from ``itdm_cfg.rows``, or rows with text fields and labels
    from ``itdm_cfg.data``. Override it to prepare anything else: save a ``datasets.DatasetDict`` with tokens,
    ``attention_mask`` and ``labels`` to ``self.itdm_cfg.dataset_path``.

    Attributes:
        itdm_cfg: The configuration.
        tokenizer: The tokenizer; it always produces attention masks.
        data_collator: Joins rows into batches.
        dataset: Splits by name, after ``setup``.
        module: The session's module.
        passing_state: Attributes of a class that do not change prepared data, such as records.
    """

    context: ClassVar[ExecutionContext | None] = None
    passing_state: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, itdm_cfg: ITDataModuleConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.itdm_cfg = itdm_cfg
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(itdm_cfg)
        self.data_collator: Callable[..., Any] = PaddingCollator(self.tokenizer)
        self.dataset: Mapping[str, datasets.Dataset] = {}
        self.module: ITModule | None = None

    def prepare_data(self, target_model: nn.Module | None = None) -> None:
        """Read, check and tokenize ``itdm_cfg.rows`` or ``itdm_cfg.data`` and save it to ``itdm_cfg.dataset_path``.

        Args:
            target_model: The model whose forward decides which columns are kept, if ``signature_columns`` is None.

        Raises:
            ConfigurationError: No data is configured.
            DataError: Rows cannot be read, lack text fields, or have labels outside the mapping.
            TokenizationError: A prompt is empty or too long.
        """
        cfg = self.itdm_cfg
        if cfg.data is None and cfg.rows is None:
            raise ConfigurationError(
                f"{type(self).__name__} has nothing to prepare: set ITDataModuleConfig.rows to rows of a question, or "
                "ITDataModuleConfig.data to a JSONL file, a folder or a hub id, or override prepare_data."
            )
        context_length = getattr(target_model, "context_length", None)
        prepared = {}
        if cfg.rows is not None:
            limit = longest_prompt(cfg, self.tokenizer, context_length)
            for split, questions in read_question_rows(cfg).items():
                prepared[split] = encode_question_rows(questions, self.tokenizer, limit, split)
        else:
            for split, dataset in read_rows(cfg).items():
                encoded = encode_prompts(dataset, self.tokenizer, cfg, split, context_length)
                prepared[split] = self._remove_unused_columns(encoded, target_model)
        datasets.DatasetDict(prepared).save_to_disk(str(cfg.dataset_path))

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Load the prepared data set."""
        loaded = datasets.load_from_disk(str(self.itdm_cfg.dataset_path))
        self.dataset = loaded if isinstance(loaded, datasets.DatasetDict) else {"test": loaded}

    def prepare_once(self, target_model: nn.Module | None = None) -> None:
        """Call ``prepare_data`` unless the cache has its result; leave nothing half-written."""
        with fetched_once():
            self._prepare_once(target_model)

    def _prepare_once(self, target_model: nn.Module | None) -> None:
        content = self.content()
        final = self._final_path(content)

        def prepare(folder: Path) -> None:
            self.itdm_cfg.dataset_path = folder
            try:
                self.prepare_data(target_model)
            finally:
                self.itdm_cfg.dataset_path = final

        self.itdm_cfg.dataset_path = build_once(final, prepare, force=self.itdm_cfg.force_prepare_data)
        if content.unknown:
            warnings.warn(
                f"The data are prepared again, because it is unknown what they depend on: {content.unknown[0]} "
                f"{WHAT_TO_DO}",
                NotReusedWarning,
                stacklevel=2,
            )
            weakref.finalize(self, shutil.rmtree, final, ignore_errors=True)  # nobody will find them again

    def content_key(self) -> str:
        """Name of everything that changes the prepared data: configuration, tokenizer, code and source files.

        Returns:
            16 hexadecimal digits.
        """
        return self.content().sha256[:16]

    def content(self) -> ContentHash:
        """Hash of everything that changes the prepared data, and the parts of it that cannot be read."""
        return prepared_content(self)

    def source_fingerprint(self) -> str:
        """Identify the content of the data source; override it if ``prepare_data`` reads other files.

        Returns:
            For each split of ``itdm_cfg.data`` the hash of its JSONL file, or of the state files of its folder (they
            hold the fingerprints of ``datasets``), or its hub id; for each split of ``itdm_cfg.rows``, and of data that
            an installed package supplies, the hash of its rows.
        """
        if self.itdm_cfg.rows is not None:
            return rows_fingerprint(self.itdm_cfg)
        data = self.itdm_cfg.data
        if (offered := offered_splits(data)) is not None:
            return splits_fingerprint(offered)
        files: Mapping[str, Any] = data if isinstance(data, Mapping) else {"": data}
        return " ".join(f"{split}={_file_fingerprint(Path(str(file)).expanduser())}" for split, file in files.items())

    def dataloader(self, split: str, *, batch_size: int, shuffle: bool = False) -> DataLoader[Any]:
        """A loader over one split.

        Raises:
            DataError: The data set has no such split.
        """
        self._check_split(split)
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "shuffle": shuffle,
            "collate_fn": self.data_collator,
            "generator": None if shuffle else torch.Generator(),  # reading in order leaves torch's random state alone
            **self.itdm_cfg.dataloader_kwargs,
        }
        try:
            return DataLoader(self.dataset[split], **options)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"ITDataModuleConfig.dataloader_kwargs does not fit: {error}.") from error

    def rows(self, split: str | None = None) -> list[PromptRow]:
        """The rows of a question as they were prepared: ``effects(module.backend, tokenizer, datamodule.rows())``.

        Args:
            split: Which; None: the one that is tested.

        Raises:
            DataError: There is no such split, or it was made of text fields and labels.
        """
        split = split or self.test_split
        self._check_split(split)
        return rows_of(self.dataset[split], split)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of ``train``."""
        return self.dataloader("train", batch_size=self.itdm_cfg.train_batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of ``validation``."""
        return self.dataloader("validation", batch_size=self.itdm_cfg.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches of ``test`` if its labels are known, otherwise of ``validation``."""
        return self.dataloader(self.test_split, batch_size=self.itdm_cfg.eval_batch_size)

    @property
    def test_split(self) -> str:
        """The split that is tested and analysed."""
        has_test = "test" in self.dataset and "labels" in self.dataset["test"].column_names
        return "test" if has_test else "validation"

    def predict_dataloader(self) -> DataLoader[Any]:
        """The same batches as ``test_dataloader``."""
        return self.test_dataloader()

    def kept_columns(self, target_model: nn.Module | None = None) -> list[str]:
        """Columns that are kept in prepared data if they exist."""
        kept = self.itdm_cfg.signature_columns
        if kept is None:
            forward = getattr(getattr(target_model, "model", target_model), "forward", None)
            kept = list(inspect.signature(forward).parameters) if forward else self.tokenizer.model_input_names
        return [*kept, *self.tokenizer.model_input_names[:1], *ALWAYS_KEPT]

    def _check_split(self, split: str) -> None:
        if split not in self.dataset:
            raise DataError(
                f"The data set has no split {split!r}; it has {sorted(self.dataset)}. "
                "Call it_init(**session) first where it was not, and give every split a source: "
                'data={"train": ..., "validation": ...}. (A file alone becomes \'validation\'.)'
            )

    def _remove_unused_columns(
        self, dataset: datasets.Dataset, target_model: nn.Module | None = None
    ) -> datasets.Dataset:
        """Drop the columns that the model does not take; masks and labels are always kept."""
        kept = self.kept_columns(target_model)
        return dataset.remove_columns([name for name in dataset.column_names if name not in kept])

    def _final_path(self, content: ContentHash) -> Path:
        name = content.sha256[:16]
        if content.unknown:
            if rank_and_processes()[1] > 1:
                raise UnknownContentError(
                    "Several processes share prepared data by what they depend on, and that cannot be known: "
                    f"{content.unknown[0]} {WHAT_TO_DO}"
                )
            name = f"{name}-{secrets.token_hex(8)}"
        if self.itdm_cfg.dataset_path is not None:
            given = Path(self.itdm_cfg.dataset_path)
            return given if given.name == name else given / name
        task = (self.itdm_cfg.task_name or type(self).__name__).replace("/", "-")
        return cache_root(self.itdm_cfg.cache_dir) / "datasets" / task / name


def _file_fingerprint(path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.rglob("*.json"))
    return " ".join(file_sha256(file) for file in files) or str(path)

"""What questions of every kind are asked of: a model, its tokenizer, and rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen
from torch import nn

from interpretune.backends.backend import AnalysisBackend
from interpretune.backends.finding import backend_of
from interpretune.errors import ConfigurationError, DataError
from interpretune.models.tokenizer import context_length
from interpretune.questions.encoding import EncodedRow, encode
from interpretune.questions.prompt_row import brief
from interpretune.questions.sources import read_rows
from interpretune.system.model_lock import model_lock
from interpretune.system.torch_state import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@frozen(eq=False)
class ModelAndRows:
    """What questions of every kind are asked of.

    Attributes:
        backend: Runs the model.
        tokenizer: Its tokenizer.
        rows: The rows, encoded.
        batch_size: Rows of one forward.
    """

    backend: AnalysisBackend
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[EncodedRow]
    batch_size: int

    @classmethod
    def of(
        cls, model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Any, answers: Any, correct: Any, batch_size: int
    ) -> ModelAndRows:
        """Read and encode rows; the arguments are those of ``effects``.

        Raises:
            AnalysisError: Core has no backend for such a model.
            ConfigurationError: The batch size is out of range, or the tokenizer is none.
            DataError: Rows cannot be read, or there are none.
        """
        check_count("batch_size", batch_size)
        if not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise ConfigurationError(
                f"The tokenizer is {brief(tokenizer)}. Give the one of the model: AutoTokenizer.from_pretrained(...)."
            )
        backend = backend_of(model, tokenizer)
        given = read_rows(prompts, answers=answers, correct=correct)
        if not given:
            raise DataError("There are no rows to ask about: prompts is empty.")
        rows = encode(given, tokenizer, most_tokens=context_length(backend.model))
        return cls(backend, tokenizer, rows, batch_size)

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the model may read in a row."""
        return context_length(self.backend.model)

    @property
    def parts(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self, recurse=False)

    def held(self, *others: object) -> AbstractContextManager[None]:
        """Hold the lock of the model; it and other modules evaluate meanwhile."""
        return _held(self.backend.model, *others)


@contextlib.contextmanager
def _held(model: nn.Module, *others: object) -> Iterator[None]:
    with model_lock(model), eval_mode(model, *others):
        yield


def check_count(name: str, number: object) -> None:
    """Refuse a number that is no count; None is one.

    Raises:
        ConfigurationError: It is not a whole number above 0.
    """
    if number is not None and (type(number) is not int or number < 1):
        raise ConfigurationError(f"{name} is {number!r}; it must be a whole number, and at least 1.")

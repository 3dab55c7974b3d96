"""The tiny models, tokenizer and rows of the conformance kit, which the tests use too."""

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from interpretune.testing import tiny_models
from interpretune.testing.tiny_models import (
    CONTEXT_LENGTH,
    TINY_MODELS,
    VOCABULARY,
    nli_rows,
    tiny_gpt2,
    tiny_llama,
    tiny_tokenizer,
)

_FOLDER = tempfile.TemporaryDirectory(prefix="interpretune-tiny-models-")


def save_tiny_model(folder: str | Path, kind: str, **settings: Any) -> Path:
    """The function of the kit; each of its models is made once, and copied."""
    return Path(shutil.copytree(saved_tiny_model(kind, **settings), folder, dirs_exist_ok=True))


@functools.cache
def saved_tiny_model(kind: str, **settings: Any) -> Path:
    """The folder that all share; none may change it."""
    return tiny_models.save_tiny_model(tempfile.mkdtemp(dir=_FOLDER.name), kind, **settings)


__all__ = [
    "CONTEXT_LENGTH",
    "TINY_MODELS",
    "VOCABULARY",
    "nli_rows",
    "save_tiny_model",
    "saved_tiny_model",
    "tiny_gpt2",
    "tiny_llama",
    "tiny_tokenizer",
]

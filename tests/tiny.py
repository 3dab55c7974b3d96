"""The tiny models, tokenizer and rows of the conformance kit, which the tests use too."""

from interpretune.testing.tiny_models import (
    CONTEXT_LENGTH,
    TINY_MODELS,
    VOCABULARY,
    nli_rows,
    save_tiny_model,
    tiny_gpt2,
    tiny_llama,
    tiny_tokenizer,
)

__all__ = [
    "CONTEXT_LENGTH",
    "TINY_MODELS",
    "VOCABULARY",
    "nli_rows",
    "save_tiny_model",
    "tiny_gpt2",
    "tiny_llama",
    "tiny_tokenizer",
]

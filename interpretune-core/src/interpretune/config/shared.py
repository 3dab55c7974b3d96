"""What the module and the data module of a session have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpretune.config.checked import CheckedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True)
class ITSharedConfig(CheckedConfig, checks_types=True):
    """Settings that a session copies into both the module's and the data module's configuration.

    A value set there takes precedence over the shared one.

    Attributes:
        model_name_or_path: Hugging Face id, local folder, or GGUF file. (A model in memory is ``ITConfig.hf_model``.)
        task_name: Name of the task; users' classes may interpret it as they like.
        tokenizer: A tokenizer of transformers in memory, in the place of the model's or a named one. Sessions work with
            copies; it stays as it is.
        tokenizer_name: Id or folder of the tokenizer, if it is not the model's; or ``name:address`` of a loader that an
            installed package offers.
        tokenizer_kwargs: Passed to ``AutoTokenizer.from_pretrained``, or to that loader.
        tokenizer_id_overrides: Token ids to set on tokenizer and model, for example ``{"pad_token_id": 50256}``.
        trust_remote_code: Whether code that comes with a model may run.
        cache_dir: Where prepared data and converted models are kept; None: see ``interpretune.cache_root``.
    """

    model_name_or_path: str = ""
    task_name: str = ""
    tokenizer: PreTrainedTokenizerBase | None = None
    tokenizer_name: str | None = None
    tokenizer_kwargs: dict[str, Any] = field(default_factory=dict)
    tokenizer_id_overrides: dict[str, int] = field(default_factory=dict)
    trust_remote_code: bool = False
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("model_name_or_path", "tokenizer_name"):
            value = getattr(self, name)
            setattr(self, name, value if value is None else str(value))  # a path is a name as well

    @property
    def names_a_tokenizer(self) -> bool:
        """Whether a tokenizer is configured: as an object, by its name, or by that of the model."""
        return self.tokenizer is not None or bool(self.tokenizer_name or self.model_name_or_path)

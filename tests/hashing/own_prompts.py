"""A module of prompts as a user writes it: templates and helpers that a prompt configuration takes from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import interpretune as it
from tests.hashing import own_templates
from tests.hashing.own_templates import framed

TEMPLATE = "the cat {}"
TEMPLATES = {"first": "the cat {}"}


def filled(text: str) -> str:
    """Use the template of this module."""
    return TEMPLATE.format(text)


@dataclass(kw_only=True)
class ByTemplate(it.PromptConfig):
    """A global of the module."""

    def model_chat_template_fn(self, task_prompt: str, tokenization_pattern: str | None = None) -> str:
        return TEMPLATE.format(task_prompt)


@dataclass(kw_only=True)
class ByTable(it.PromptConfig):
    """An entry of a global of the module."""

    def model_chat_template_fn(self, task_prompt: str, tokenization_pattern: str | None = None) -> str:
        return TEMPLATES["first"].format(task_prompt)


@dataclass(kw_only=True)
class ByHelper(it.PromptConfig):
    """A function of the module."""

    def model_chat_template_fn(self, task_prompt: str, tokenization_pattern: str | None = None) -> str:
        return filled(task_prompt)


@dataclass(kw_only=True)
class ByHelperElsewhere(it.PromptConfig):
    """A function of another module."""

    def model_chat_template_fn(self, task_prompt: str, tokenization_pattern: str | None = None) -> str:
        return framed(task_prompt)


@dataclass(kw_only=True)
class ByModuleElsewhere(it.PromptConfig):
    """A function of another module, by its module."""

    def model_chat_template_fn(self, task_prompt: str, tokenization_pattern: str | None = None) -> str:
        return own_templates.framed(task_prompt)


class Base:
    """What a prompt configuration inherits."""

    template: ClassVar[str] = "the cat {}"

    def filled(self, text: str) -> str:
        """Use the class attribute."""
        return self.template.format(text)


@dataclass(kw_only=True)
class ByClassAttribute(Base, it.PromptConfig):
    """An attribute of a base class, used by an inherited method."""

    def model_chat_template_fn(self, task_prompt: str, tokenization_pattern: str | None = None) -> str:
        return self.filled(task_prompt)


@dataclass(kw_only=True)
class ByPrivateAttribute(it.PromptConfig):
    """A private attribute that is no field."""

    def __post_init__(self) -> None:
        self._template: Any = {"text": "the cat {}"}

    def model_chat_template_fn(self, task_prompt: str, tokenization_pattern: str | None = None) -> str:
        return self._template["text"].format(task_prompt)


class OwnData(it.ITDataModule):
    """A data module that prepares by a helper of its module and an attribute of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.opening = "the"

    def prepare_data(self, target_model: Any = None) -> None:
        """As core does it, with another join."""
        self.itdm_cfg.prompt_cfg.ctx_question_join = f" {self.opening} {filled('dog')} "
        super().prepare_data(target_model)


def configure(datamodule: Any) -> None:
    """Set a setting of a data module out of the environment."""
    datamodule.settings = {"opening": os.environ.get("OPENING", "the")}


def opening_of(datamodule: Any) -> str:
    """Read it."""
    return datamodule.settings["opening"]


class ByOpening(it.ITDataModule):
    """A data module that leaves its settings to helpers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        configure(self)

    def prepare_data(self, target_model: Any = None) -> None:
        """As core does it, with another join."""
        self.itdm_cfg.prompt_cfg.ctx_question_join = f" {opening_of(self)} "
        super().prepare_data(target_model)

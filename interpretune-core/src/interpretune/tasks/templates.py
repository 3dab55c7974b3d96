"""Prompts from templates and words, with the places at which the words stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Formatter
from typing import Any

import yaml

from interpretune.questions import PromptRow
from interpretune.tasks.task import Part


def words_of(task: str, part: Part) -> dict[str, Any]:
    """The words of a task: lists by kind, those of the part and those of both parts."""
    text = files("interpretune").joinpath(f"tasks/words/{task}.yaml").read_text(encoding="utf-8")
    words = yaml.safe_load(text)
    return {**words.get("both", {}), **words[part]}


def filled(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """A template with words in its fields, and for each field its first character and the one after its last."""
    text, spans = "", {}
    for literal, name, _, _ in Formatter().parse(template):
        text += literal
        if name is not None:
            spans[name] = (len(text), len(text) + len(words[name]))
            text += words[name]
    return text, spans


def row_of(
    template: str, words: Mapping[str, str], changed: Mapping[str, str] | None, answers: Sequence[str], correct: int
) -> PromptRow:
    """A row whose corrupted prompt has other words in some fields of the template.

    Args:
        template: Text with fields in braces, which become spans.
        words: The word of each field.
        changed: The words of the corrupted prompt that differ; None: there is no such prompt.
        answers: The answers.
        correct: Index of the correct one.
    """
    prompt, spans = filled(template, words)
    corrupted = None if changed is None else filled(template, {**words, **changed})[0]
    return PromptRow(prompt, tuple(answers), correct=correct, corrupted=corrupted, spans=spans)

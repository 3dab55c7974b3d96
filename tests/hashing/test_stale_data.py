"""Prepared data follow everything that the code which prepares them uses; what is unchanged is prepared once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import interpretune as it
from tests.hashing import own_prompts, own_templates
from tests.tiny import nli_rows


@pytest.fixture
def settings(gpt2_folder: Path, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in nli_rows(4)))
    return {
        "model_name_or_path": str(gpt2_folder),
        "task_name": "tiny",
        "data": path,
        "text_fields": ("premise", "hypothesis"),
        "num_labels": 2,
    }


@pytest.fixture
def prepare(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[int], bool]]:
    """Tokens of the first row, and whether anything was prepared for them."""
    original, prepared = it.ITDataModule.prepare_data, []

    def prepare_data(self: Any, target_model: Any = None) -> None:
        prepared.append(1)
        original(self, target_model)

    monkeypatch.setattr(it.ITDataModule, "prepare_data", prepare_data)

    def prepare(kind: type = it.ITDataModule, **changes: Any) -> tuple[list[int], bool]:
        prepared.clear()
        datamodule = kind(it.ITDataModuleConfig(**{**settings, **changes}))
        datamodule.prepare_once()
        datamodule.setup()
        return datamodule.dataset["validation"][0]["input_ids"], bool(prepared)

    return prepare


Prepare = Callable[..., tuple[list[int], bool]]
OTHER = "the dog is away {}"
WAYS: dict[str, tuple[type, Callable[[pytest.MonkeyPatch], None]]] = {
    "template": (own_prompts.ByTemplate, lambda patch: patch.setattr(own_prompts, "TEMPLATE", OTHER)),
    "entry": (own_prompts.ByTable, lambda patch: patch.setitem(own_prompts.TEMPLATES, "first", OTHER)),
    "helper": (own_prompts.ByHelper, lambda patch: patch.setattr(own_prompts, "TEMPLATE", OTHER)),
    "helper's code": (own_prompts.ByHelper, lambda patch: patch.setattr(own_prompts, "filled", lambda text: "dog")),
    "helper elsewhere": (own_prompts.ByHelperElsewhere, lambda patch: patch.setattr(own_templates, "FRAME", OTHER)),
    "module elsewhere": (own_prompts.ByModuleElsewhere, lambda patch: patch.setattr(own_templates, "FRAME", OTHER)),
    "class attribute": (own_prompts.ByClassAttribute, lambda patch: patch.setattr(own_prompts.Base, "template", OTHER)),
    "inherited method": (
        own_prompts.ByClassAttribute,
        lambda patch: patch.setattr(own_prompts.Base, "filled", lambda self, text: "dog"),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_prompt_uses_gives_new_tokens(way: str, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, change = WAYS[way]
    first, ran = prepare(prompt_cfg=kind())
    assert ran
    assert prepare(prompt_cfg=kind()) == (first, False)
    change(monkeypatch)
    other, ran = prepare(prompt_cfg=kind())
    assert ran
    assert other != first
    assert prepare(prompt_cfg=kind()) == (other, False)


def test_a_private_attribute_of_a_prompt_gives_new_tokens(prepare: Prepare) -> None:
    first, _ = prepare(prompt_cfg=own_prompts.ByPrivateAttribute())
    changed = own_prompts.ByPrivateAttribute()
    changed._template["text"] = OTHER
    other, ran = prepare(prompt_cfg=changed)
    assert ran
    assert other != first
    assert prepare(prompt_cfg=own_prompts.ByPrivateAttribute()) == (first, False)


def test_what_a_data_module_uses_gives_new_tokens(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = prepare(own_prompts.OwnData)
    assert prepare(own_prompts.OwnData) == (first, False)
    monkeypatch.setattr(own_prompts, "TEMPLATE", OTHER)
    other, ran = prepare(own_prompts.OwnData)
    assert ran
    assert other != first

    class Away(own_prompts.OwnData):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.opening = "away"

    third, ran = prepare(Away)
    assert ran
    assert third not in (first, other)


def test_what_helpers_read_of_a_data_module_counts(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = prepare(own_prompts.ByOpening)
    assert prepare(own_prompts.ByOpening) == (first, False)
    monkeypatch.setenv("OPENING", "dog")
    other, ran = prepare(own_prompts.ByOpening)
    assert ran
    assert other != first


class WithLock(own_prompts.ByPrivateAttribute):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_data_that_depend_on_the_unknown_are_prepared_again(prepare: Prepare, own_cache: Path) -> None:
    first = WithLock()
    for text in ("the cat {}", OTHER):
        first._template["text"] = text
        with pytest.warns(it.NotReusedWarning, match=r"prepared again.*a lock.*\['prompt_cfg'\]\.lock.*identity\(\)"):
            tokens, ran = prepare(prompt_cfg=first)
        assert ran
        assert tokens == prepare(prompt_cfg=said(text))[0]


def said(text: str) -> own_prompts.ByPrivateAttribute:
    prompt = own_prompts.ByPrivateAttribute()
    prompt._template["text"] = text
    return prompt


class SaysItself(WithLock):
    def identity(self) -> Any:
        return self._template


def test_a_prompt_that_says_what_counts_is_prepared_once(prepare: Prepare) -> None:
    first, _ = prepare(prompt_cfg=SaysItself())
    assert prepare(prompt_cfg=SaysItself()) == (first, False)
    other = SaysItself()
    other._template["text"] = OTHER
    assert prepare(prompt_cfg=other)[1]


def test_processes_that_share_data_need_to_know(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(it.PlanError, match=r"Several processes share prepared data .*\.lock"):
        prepare(prompt_cfg=WithLock())
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(it.ConfigurationError, match="The environment has no RANK, WORLD_SIZE=two"):
        prepare(prompt_cfg=WithLock())

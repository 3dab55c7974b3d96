"""The rule of stacks blames the adapter that is checked for nothing that others do."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

from interpretune.testing import RULES, AdapterConformance, Bench, RuleBroken
from interpretune.testing.rules import stacking

SOURCE = """
import interpretune as it


class Adapter:
    declaration = it.AdapterDeclaration(name={name!r}, {declared}, contract="1.0")

    {body}


adapter = Adapter()
"""


@pytest.fixture
def adapter(install: Callable[..., Path]) -> Callable[..., None]:
    def adapter(name: str, declared: str, body: str = "", before: str = "") -> None:
        source = before + SOURCE.format(name=name, declared=declared, body=body)
        install(f"interpretune-{name}", adapters={name: f"{name}:adapter"}, **{name: source})

    return adapter


@pytest.fixture
def check(tmp_path: Path) -> Callable[[str], None]:
    def check(name: str) -> None:
        suite = type("Suite", (AdapterConformance,), {"adapter": name})()
        RULES["stacks-in-every-order"].check(Bench(suite, tmp_path / "bench"))

    return check


def test_a_requirement_may_be_what_does_not_stack(adapter, check):
    adapter(
        "loader",
        "level='model'",
        "def it_load_model(self, module): ...\n\n    it_load_model = it.hookimpl(it_load_model)",
    )
    adapter("leaner", "level='extension', requires=('huggingface',)")
    check("leaner")
    check("loader")


def test_a_default_model_may_be_what_does_not_stack(adapter, check):
    adapter("leaner", "level='latents', default_model='huggingface'")
    adapter("enemy", "level='extension', conflicts=('huggingface',)")
    check("leaner")
    check("enemy")


def test_a_refusal_without_a_declared_reason_is_a_failure(adapter, check, monkeypatch):
    from interpretune.errors import StackError

    adapter("hermit", "level='extension'")
    build = stacking.build_context

    def refuse(names):
        if {"hermit", "huggingface"} <= set(names):
            raise StackError("'hermit' and 'huggingface' do not like each other")
        return build(names)

    monkeypatch.setattr(stacking, "build_context", refuse)
    with pytest.raises(RuleBroken, match="do not like each other"):
        check("hermit")


@pytest.mark.parametrize("fault", ["raise SystemExit(3)", "raise RuntimeError('no')"])
def test_a_guest_that_fails_at_import_is_no_fault_of_another(adapter, check, fault):
    adapter("guest", "level='extension'", before=fault)
    check("core")


def test_metadata_is_read_a_few_times_only(check, monkeypatch):
    calls = []
    read = importlib.metadata.entry_points

    def counted(**wanted):
        calls.append(wanted)
        return read(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", counted)
    check("core")
    assert len(calls) < 10


def test_an_order_that_others_cannot_keep_breaks_it(adapter, check):
    adapter("leaner", "level='extension', before=('huggingface',)")
    with pytest.raises(RuleBroken, match=r"leaner \(extension, requires nothing, before huggingface\)"):
        check("leaner")
    adapter("neighbour", "level='extension', after=('hello', 'absent')")
    check("neighbour")

"""The page that maps the tutorial's imports to their new homes tells the truth and leaves nothing out."""

from __future__ import annotations

import importlib

import pytest

from tests.e2e.tutorial import code_cells, is_old, old_imports, read_imports_page, tutorial_text

HOMES = read_imports_page()


@pytest.mark.parametrize("home", sorted({home for home in HOMES.values() if home}), ids=".".join)
def test_new_home_exists(home: tuple[str, str]) -> None:
    module, name = home
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("home", sorted({home for home in HOMES.values() if home}), ids=".".join)
def test_new_home_is_a_public_name_of_a_flat_namespace(home: tuple[str, str]) -> None:
    module, name = home
    assert module in {"interpretune", "interpretune.analysis", "interpretune_tlens", "interpretune_saelens"}
    assert name in importlib.import_module(module).__all__


def test_page_lists_old_names_only() -> None:
    assert HOMES
    assert all(is_old(module) for module, _ in HOMES)


def test_every_import_of_the_tutorial_is_listed() -> None:
    text = tutorial_text()
    if text is None:
        pytest.skip("the tutorial is not beside this repository")
    assert old_imports(code_cells(text)) == set(HOMES)

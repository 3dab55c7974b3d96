"""The site has every public name with its documentation, and links lead where they lead in the repository."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest

from website import reference, repository
from website.notebooks import notebook_page

NAMES = reference.public_names()


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.reference_pages(NAMES, reference.load_packages())


@pytest.fixture
def package(tmp_path: Path) -> griffe.ModulesCollection:
    """A package with a documented function, one without a docstring, and a second namespace with the first one."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "__init__.py").write_text('"""A package."""\n\nfrom small.other import told, untold\n')
    (tmp_path / "small" / "other.py").write_text(
        '"""A module."""\n\ndef told():\n    """Say it."""\n\ndef untold(): ...\n'
    )
    loader = griffe.GriffeLoader(search_paths=[tmp_path])
    loader.load("small", try_relative_path=False)
    return loader.modules_collection


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """Warnings that are logged."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("mkdocs")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def test_every_public_name_is_described(warned):
    pages = reference.reference_pages(NAMES, reference.load_packages())
    assert warned == []
    text = "\n".join(pages.values())
    for name in NAMES:
        space, _, short = name.rpartition(".")
        page = pages[f"reference/{space}.md"]
        described = f"::: {name}\n" in page or f"| `{short}` | [`interpretune" in page
        assert described or f"]({name}.md) is a namespace" in page, name
    assert text.count("::: ") == len({line for line in text.splitlines() if line.startswith("::: ")})


def test_name_without_docstring_is_a_warning(package, warned):
    reference.reference_pages(["small.told", "small.untold"], package)
    assert warned == ["The public name small.untold has no docstring (small.other.untold)."]


def test_name_that_does_not_exist_is_a_warning(package, warned):
    reference.reference_pages(["small.told", "small.gone"], package)
    assert warned == ["The public name small.gone does not exist."]


def test_a_second_name_of_an_object_refers_to_the_first(package):
    pages = reference.reference_pages(["small.told", "small.other.told"], package)
    assert "::: small.told\n" in pages["reference/small.md"]
    assert "::: " not in pages["reference/small.other.md"]
    assert "| `told` | [`small.told`][small.told] |" in pages["reference/small.other.md"]


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("readme.md", "docs/ablation.md", "ablation.md"),
        ("readme.md", "LICENSE", "files/LICENSE.txt"),
        ("packages/interpretune-core.md", "../docs/index.md", "../index.md"),
        ("packages/interpretune-hello.md", "../../docs/adapters/writing.md", "../adapters/writing.md"),
        ("adapters/writing.md", "../../examples/interpretune-hello/README.md", "../packages/interpretune-hello.md"),
        ("index.md", "../CHANGELOG.md", "changelog.md"),
        ("adapters/hooks.md", "../results.md", "../results.md"),
        ("index.md", "../examples/notebooks/memory.ipynb", "notebooks/memory.md"),
        ("notebooks/memory.md", "../../docs/memory.md", "../memory.md"),
    ],
)
def test_link_leads_to_the_same_on_the_site(page, link, expected, warned):
    assert repository.site_link(link, page) == expected
    assert warned == []


def test_link_to_nothing_is_a_warning(warned):
    repository.page_for_site("see [this](../nothing.md#there)", "adapters/hooks.md")
    assert warned == ["adapters/hooks.md links to ../nothing.md, which does not exist."]


def test_anchors_and_addresses_stay_in_links():
    page = "[a](docs/ablation.md#how) [b](https://nnsight.net/x.md) [c](#here)\n```python runnable\n"
    expected = "[a](ablation.md#how) [b](https://nnsight.net/x.md) [c](#here)\n```python\n"
    assert repository.page_for_site(page, "readme.md") == expected


def test_notebooks_are_pages_in_which_outputs_are_no_links():
    outputs = [
        {"data": {"text/html": ["<b>](token</b>\n", "<i>x</i>"], "text/plain": "twice"}},
        {"name": "stdout", "text": ["a < b](c\n"]},
        {"data": {"image/png": "AAAA\n"}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "[x](../../docs/memory.md)"]},
        {"cell_type": "code", "source": ["f(x)"], "outputs": outputs},
    ]
    page = notebook_page(json.dumps({"cells": cells}))
    assert page.startswith("# Title\n[x](../../docs/memory.md)\n\n```python\nf(x)\n```\n\n<div>\n<b>]&#40;token</b>")
    assert "<pre>a &lt; b]&#40;c\n</pre>\n\n![Figure](data:image/png;base64,AAAA)" in page
    assert "twice" not in page


def test_files_that_pages_link_to_are_on_the_site():
    found = repository.linked_files({"readme.md": "[x](LICENSE) [y](docs/ablation.md) [z](CHANGELOG.md)"})
    assert found == {"files/LICENSE.txt": repository.ROOT / "LICENSE"}

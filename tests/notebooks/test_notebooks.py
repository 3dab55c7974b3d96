"""The notebooks of the examples run as they are stored, on the offline model, and show nothing of a machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import lazy_loader
import pytest

import interpretune as it
from tests.notebooks.execution import NOTEBOOKS, executed, kinds_of, outputs_of

nbformat = lazy_loader.load("nbformat")
MOST_BYTES = 1_500_000
OF_A_MACHINE = re.compile(r"/(root|home|Users|tmp|usr|opt|work|private|var)/|[A-Z]:\\\\|site-packages|0x[0-9a-f]{6,}")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def real_cache() -> Path:
    """The cache of the user, with the offline model."""
    cache = Path(os.environ.get("INTERPRETUNE_TEST_CACHE") or it.cache_root())
    try:
        it.offline_model(cache)
    except it.ModelLoadError as error:
        pytest.skip(f"the offline model cannot be had: {error}")
    return cache


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == {"agreement", "circuits", "memory", "tutorial"}


@each_notebook
def test_stored_outputs_are_of_one_clean_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [(cell, outputs) for cell, outputs in outputs_of(notebook)]
    assert [cell.execution_count for cell, _ in cells] == [*range(1, len(cells) + 1)]
    shown = {kind for kinds in kinds_of(notebook) for kind in kinds}
    assert any("text/html" in kind for kind in shown)
    assert not {"stderr", "error"} & shown
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    assert not OF_A_MACHINE.search(re.sub(r'"image/png": "[^"]*"', "", text))


@pytest.mark.notebook
@each_notebook
def test_cells_run_and_show_what_is_stored(path, real_cache, tmp_path):
    assert kinds_of(executed(path, real_cache, tmp_path)) == kinds_of(nbformat.read(path, as_version=4))

"""Files of figures: whole or not there, with the script that they need, and errors in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

import interpretune as it
from interpretune.reports.plots import PLOTLY, show_or_save

FIGURE = go.Figure(go.Bar(x=[1, 2], y=[3, 4]))


def save(folder: Path) -> Path:
    path = show_or_save(FIGURE, "effects", folder)
    assert path is not None
    return path


def test_figures_share_one_script(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "folder")
    assert f'src="{PLOTLY}"' in path.read_text(encoding="utf-8")
    assert (path.parent / PLOTLY).read_text(encoding="utf-8") == get_plotlyjs()
    assert sorted(item.name for item in path.parent.iterdir()) == ["effects.html", PLOTLY]
    script = path.parent / PLOTLY
    before = script.stat()
    save(path.parent)
    assert script.stat().st_mtime_ns == before.st_mtime_ns
    assert script.stat().st_ino == before.st_ino


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100_000])


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2_000_000:2_004_096] = bytes(4096)
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("damage", [cut, changed, empty, longer, pipe, dangling])
def test_a_script_that_was_cut_short_is_written_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """As by a disk that was full; all figures of the folder were blank for ever."""
    save(tmp_path)
    damage(tmp_path / PLOTLY)
    save(tmp_path)
    assert (tmp_path / PLOTLY).read_text(encoding="utf-8") == get_plotlyjs()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize(("step", "file"), [("write_bytes", PLOTLY), ("write_text", "effects.html")])
def test_a_figure_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str, file: str
) -> None:
    def refuse(path: Path, content: Any, **_: Any) -> None:
        with path.open("wb") as half:
            half.write(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, step, refuse)
    words = {errno.ENOSPC: f"no room for .*{file} ", errno.EROFS: f"{file} may not be written"}[number]
    with pytest.raises(it.OutputError, match=f"{words}.*another folder with `figure_dir`") as caught:
        save(tmp_path / "figures")
    assert f"{tmp_path / 'figures' / file}" in str(caught.value)
    assert not [item for item in (tmp_path / "figures").iterdir() if item.name not in (PLOTLY, "effects.html")]
    assert not (tmp_path / "figures" / file).exists()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(it.OutputError, match=r"figures/.* could not be written .*another folder with `figure_dir`"):
        save(tmp_path / "figures")

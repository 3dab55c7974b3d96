"""Tab completion, tried in a shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from interpretune.cli.main import main


def completed(script: Path, folder: Path, *words: str) -> list[str]:
    """What bash offers for the last of some words."""
    asked = (
        f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_interpretune; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    told = subprocess.run(["bash", "-c", asked], cwd=folder, capture_output=True, text=True, check=True)
    return told.stdout.split()


def test_commands_options_and_files_are_completed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "question.yaml").touch()
    assert completed(script, folder, "interpretune", "do") == ["doctor"]
    assert completed(script, folder, "interpretune", "circuit", "--verb") == ["--verbose"]
    assert completed(script, folder, "interpretune", "run", "que") == ["question.yaml"]
    assert completed(script, folder, "interpretune", "export", "x", "--format", "d") == ["delphi"]


def test_without_the_extra_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "zsh"])
    assert ended.value.code == 2
    assert 'pip install "interpretune-core[completion]"' in capsys.readouterr().err

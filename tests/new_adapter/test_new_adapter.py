"""What ``interpretune new-adapter`` writes installs, is discovered, stacks and passes the kit as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import interpretune as it
from interpretune.cli.main import EXIT_ERROR, main
from interpretune.new_adapter import writing
from interpretune.new_adapter.naming import LONGEST, check_name
from interpretune.new_adapter.writing import ADAPTER_KINDS, KINDS, TEMPLATES, core_requirement, write_adapter
from tests.fresh_environment import ROOT

KIND_NAMES = [str(kind) for kind in ADAPTER_KINDS]


def adapter_name(kind: str) -> str:
    return f"acme_{kind}"


def test_kinds_are_the_levels_of_adapters() -> None:
    assert list(ADAPTER_KINDS) == list(it.Level)
    assert sorted(folder.name for folder in KINDS.iterdir()) == sorted(KIND_NAMES)


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("name", ["x", "sparse_coder_2", "a" * LONGEST])
def test_what_was_written_is_clean(kind: str, name: str, tmp_path: Path) -> None:
    folder = write_adapter(name, it.Level(kind), tmp_path / "package")
    ruff = [sys.executable, "-m", "ruff"]
    found = subprocess.run([*ruff, "check", "--no-cache", folder], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    if len(name) < LONGEST:  # with the longest, some lines could be broken in other places
        subprocess.run([*ruff, "format", "--check", "--no-cache", folder], check=True, capture_output=True)
    for file in folder.rglob("*"):
        if file.is_file():
            text = f"{file.relative_to(folder)}\n{file.read_text(encoding='utf-8')}"
            assert not re.search("adapter_?name|AdapterName|ADAPTER_|CORE_", text), file
    assert (folder / ".gitignore").is_file()
    assert (folder / f"src/interpretune_{name.replace('_', '')}/py.typed").is_file()


def test_types_are_checked_as_in_the_workspace() -> None:
    """``make lint`` checks the types of what was written, with the settings of the workspace."""
    workspace, written = (
        tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
        for folder in (ROOT, TEMPLATES)
    )
    assert written["strict"]
    assert written == {name: workspace[name] for name in written}


def test_requirement_admits_compatible_versions_of_core_only(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"0.1.0": ">=0.1,<0.2", "0.9.3": ">=0.9,<0.10", "1.4.2": ">=1.4,<2", "2.0.0rc1": ">=2.0,<3"}
    for version, wanted in expected.items():
        monkeypatch.setattr(writing, "version", lambda _, version=version: version)
        assert core_requirement() == f"interpretune-core{wanted}"


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("my-lens", "'my_lens'"),
        ("MyLens", "'mylens'"),
        ("my__lens", "'my_lens'"),
        ("lens_", "'lens'"),
        ("3d_lens", "'d_lens'"),
        ("my lens/../x", "'my_lens_x'"),
        ("a" * (LONGEST + 1), f"'{'a' * LONGEST}'"),
    ],
)
def test_a_name_of_the_wrong_form_is_refused_with_a_better_one(name: str, offered: str) -> None:
    with pytest.raises(it.ConfigurationError, match="cannot be the name of an adapter") as refused:
        check_name(name)
    assert str(refused.value).endswith(f"Write {offered}.")
    assert check_name(offered.strip("'")).name == offered.strip("'")


@pytest.mark.parametrize("name", ["", "_", "42"])
def test_a_name_without_letters_is_refused(name: str) -> None:
    with pytest.raises(it.ConfigurationError, match=r"at most\.$"):
        check_name(name)


def test_names_that_are_taken_are_refused(adapter_of) -> None:
    with pytest.raises(it.ConfigurationError, match="'core' is taken: interpretune-core .* registers it"):
        check_name("core")
    adapter_of("acme", version="3.2.1")
    with pytest.raises(it.ConfigurationError, match="'acme' is taken: interpretune-acme 3.2.1 registers it"):
        check_name("acme")
    with pytest.raises(it.ConfigurationError, match="imported as interpretune_acme, which is installed"):
        check_name("ac_me")  # the same package


def test_names_of_package_and_classes() -> None:
    names = check_name("my_lens_2")
    assert (names.package, names.distribution, names.class_name) == (
        "interpretune_mylens2",
        "interpretune-mylens2",
        "MyLens2",
    )


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for place, said in ((tmp_path, "is not empty"), (tmp_path / "notes.txt", "is a file")):
        assert main(["new-adapter", "acme", "--output", str(place)]) == EXIT_ERROR
        assert said in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-adapter", "acme", "--output", str(tmp_path / "nowhere" / "package")]) == EXIT_ERROR
    assert "cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exists", [True, False])
def test_an_error_half_way_leaves_nothing_behind(exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "package"
    if exists:
        folder.mkdir()
    written = []
    write = Path.write_text

    def full_disk(self: Path, *args, **kwargs) -> int:
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(self)
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(it.ConfigurationError, match="No space left on device"):
        write_adapter("acme", output=folder)
    assert len(written) == 5
    assert [item.name for item in tmp_path.iterdir()] == (["package"] if exists else [])
    assert not exists or not list(folder.iterdir())


@pytest.mark.parametrize("moves", [0, 1, 3])
def test_an_error_while_files_are_put_in_place_leaves_nothing_behind(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, moved = Path.replace, []

    def failing(self: Path, target: Path) -> Path:
        if len(moved) == moves:
            raise OSError(5, "Input/output error")
        moved.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(it.ConfigurationError, match="Input/output error"):
        write_adapter("acme", output=tmp_path)
    assert len(moved) == moves
    assert not list(tmp_path.iterdir())


def test_the_current_folder_can_be_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-adapter", "acme", "--kind", "model", "--output", "."]) == 0
    assert Path("pyproject.toml").is_file()
    said = capsys.readouterr().out
    for command in ('pip install --editable ".[dev]"', "pytest", "interpretune doctor acme"):
        assert command in said


def test_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "package"
    assert main(["new-adapter", "acme", "--kind", "latents", "--output", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "acme", "kind": "latents", "folder": str(folder)}

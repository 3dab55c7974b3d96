"""Faults that somebody could make in the sources, written down as data in ``faults/*.yaml``, and how one is put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from attrs import frozen

ROOT = Path(__file__).parents[2]
LISTS = Path(__file__).parent / "faults"


class StaleFaultError(Exception):
    """A fault does not fit to the sources any more."""


@frozen
class Fault:
    """One fault.

    Attributes:
        area: Name of the list that it stands in.
        about: What it does.
        old: Text that stands in the sources once, in whichever file.
        new: What stands there with the fault.
        tests: Files or folders of tests, at least one of which fails with it.
        file: End of the file's path, where several files have the text.
    """

    area: str
    about: str
    old: str
    new: str
    tests: Sequence[str]
    file: str = ""

    def __str__(self) -> str:
        return f"{self.area}: {self.about}"


def read_faults() -> list[Fault]:
    """All faults, list by list."""
    lists = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(LISTS.glob("*.yaml"))}
    return [Fault(area, **item) for area, items in lists.items() for item in items]


def source_folders(root: Path = ROOT) -> list[Path]:
    """The ``src`` folders of all packages below a root, those of the examples included."""
    return sorted([*root.glob("interpretune-*/src"), *root.glob("examples/*/src")])


def read_sources(root: Path = ROOT) -> dict[Path, str]:
    """What a fault may be put into, by path: the packages below a root, without examples and templates."""
    files = [file for file in root.glob("interpretune-*/src/**/*.py") if "templates" not in file.parts]
    return {file: file.read_text(encoding="utf-8") for file in files}


def put_in(fault: Fault, sources: Mapping[Path, str]) -> tuple[Path, str]:
    """The file of a fault, and its text with the fault.

    Raises:
        StaleFaultError: The old text is not there exactly once, or the new one is no Python.
    """
    possible = {path: text for path, text in sources.items() if path.as_posix().endswith(fault.file)}
    places = [path for path, text in possible.items() for _ in range(text.count(fault.old))]
    if len(places) != 1:
        where = f": {', '.join(map(str, places))}" if places else ""
        raise StaleFaultError(f"{fault}: its old text stands {len(places)} times in the sources{where}.")
    (path,) = places
    text = possible[path].replace(fault.old, fault.new)
    try:
        compile(text, str(path), "exec")
    except SyntaxError as error:
        raise StaleFaultError(f"{fault}: with it {path} is no Python: {error}.") from error
    return path, text


def stale(faults: Sequence[Fault], root: Path = ROOT) -> list[str]:
    """What does not fit any more, in words."""
    sources, found = read_sources(root), []
    for fault in faults:
        try:
            put_in(fault, sources)
        except StaleFaultError as error:
            found.append(str(error))
        found += [f"{fault}: there is no {path}." for path in fault.tests if not (root / path).exists()]
    return found

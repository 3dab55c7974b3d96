"""Writes a package from the templates in this folder.

The templates are files that mean something as they are: Python that can be linted, TOML that can be read. The names in
them (``adapter_name``, ``AdapterName``, ...) are replaced, in file names too. Files of ``kinds/<kind>`` come on top of
those that all kinds share.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from attrs import frozen

from interpretune.errors import ConfigurationError
from interpretune.new_adapter.naming import AdapterNames, check_name
from interpretune.plugins.declaration import CONTRACT_VERSION, Level

TEMPLATES = Path(__file__).parent / "templates"
KINDS = TEMPLATES / "kinds"
HIDDEN_FILES = ("gitignore",)
"""Templates of files whose names begin with a dot; with it, they would have their effect here."""


@frozen
class Kind:
    """What distinguishes the packages of one level.

    Attributes:
        summary: What the package is.
        requirements: Distributions that it imports beside core's and what core depends on for certain.
        backend: What makes the backend of a model in memory, in the module ``backend``; None: it has no models.
    """

    summary: str
    requirements: tuple[str, ...] = ()
    backend: str | None = None


ADAPTER_KINDS: Mapping[Level, Kind] = {
    Level.framework: Kind("A trainer for sessions of interpretune"),
    Level.model: Kind("Models of another library for interpretune", backend="backend_of_model"),
    Level.latents: Kind("Dictionaries of latents for interpretune", ("safetensors>=0.4",)),
    Level.extension: Kind("An extension of interpretune: times steps, and offers an operation"),
}


def write_adapter(name: str, kind: Level = Level.extension, output: Path | None = None) -> Path:
    """Write a package that installs, stacks and passes the conformance suite as it stands; returns its folder.

    Raises:
        ConfigurationError: The name cannot be used, or the folder cannot be written. Nothing was written then.
    """
    names = check_name(name)
    folder = Path(names.distribution) if output is None else output.expanduser()
    files = render(names, kind)
    try:
        with _moved_into(folder) as partial:
            for path, text in files.items():
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                (partial / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"The package cannot be written to {folder}: {error.strerror or error}. Nothing was written. Choose "
            "another folder with --output."
        ) from error
    return folder


def render(names: AdapterNames, kind: Level) -> dict[Path, str]:
    """The files of a package: their text by path."""
    replaced = {
        "adapter_name": names.name,
        "adaptername": names.joined,
        "AdapterName": names.class_name,
        "ADAPTER_SUMMARY": ADAPTER_KINDS[kind].summary,
        "ADAPTER_DEPENDENCIES": '", "'.join((core_requirement(), *ADAPTER_KINDS[kind].requirements)),
        "CORE_CONTRACT": CONTRACT_VERSION,
        "# ADAPTER_BACKEND\n\n": _backend_of(names, ADAPTER_KINDS[kind]),
    }
    pattern = re.compile("|".join(replaced))

    def fill(text: str) -> str:
        return pattern.sub(lambda found: replaced[found[0]], text)

    shared = [file for file in _files(TEMPLATES) if KINDS not in file.parents]
    own = _files(KINDS / kind)
    placed = {file.relative_to(TEMPLATES): file for file in shared}
    placed |= {file.relative_to(KINDS / kind): file for file in own}
    return {
        Path(f".{path}" if path.name in HIDDEN_FILES else fill(str(path))): fill(file.read_text(encoding="utf-8"))
        for path, file in sorted(placed.items())
    }


def _backend_of(names: AdapterNames, kind: Kind) -> str:
    """The entry point by which ``interpretune.effects`` takes a model of the package; none if there is no backend."""
    if kind.backend is None:
        return ""
    return (
        "# `interpretune.effects` takes models whose class is in the package of this name.\n"
        '[project.entry-points."interpretune.backends"]\n'
        f'{names.package} = "{names.package}.backend:{kind.backend}"\n\n'
    )


def core_requirement() -> str:
    """The versions of core that keep what this one promises: the next minor version may break it below 1.0."""
    major, minor, *_ = (int(part) for part in re.findall(r"\d+", version("interpretune-core")))
    return f"interpretune-core>={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def _files(folder: Path) -> list[Path]:
    """Templates in a folder; caches of tools that looked at them are none."""
    return [
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in file.relative_to(folder).parts)
    ]


@contextlib.contextmanager
def _moved_into(folder: Path) -> Iterator[Path]:
    """A folder to be filled, which then takes the place of an absent or empty one; an error leaves nothing behind."""
    exists = folder.is_dir()
    if folder.exists() and not (exists and next(folder.iterdir(), None) is None):
        raise ConfigurationError(
            f"{folder} {'is not empty' if exists else 'is a file'}. Nothing was written. Choose a folder that does "
            "not exist, or an empty one."
        )
    partial = (folder if exists else folder.parent) / f".{uuid.uuid4().hex}.partial"
    moved: list[Path] = []
    done = False
    try:
        partial.mkdir()
        yield partial
        if exists:  # an empty folder stays the one that it is: it may be somebody's current one
            moved.extend(item.replace(folder / item.name) for item in sorted(partial.iterdir()))
        else:
            partial.replace(folder)
        done = True
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for item in [] if done else moved:
            shutil.rmtree(item) if item.is_dir() else item.unlink()

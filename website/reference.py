"""The reference: a page for each public namespace of ``tests/public_names.txt``, and one for the command line.

A public name that does not exist or has no docstring is a warning, which ends a strict build.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
NAMES = ROOT / "tests" / "public_names.txt"
PACKAGES = ("interpretune", "interpretune_lightning", "interpretune_tlens", "interpretune_saelens")

log = logging.getLogger("mkdocs.website.reference")


def public_names() -> list[str]:
    """All public names, in the order of the namespaces that say first what a name is."""
    names = NAMES.read_text(encoding="utf-8").split()
    return sorted(names, key=lambda name: (_rank(name.rpartition(".")[0]), name.lower()))


def namespaces(names: Sequence[str]) -> list[str]:
    """The namespaces of the names, each once, in the order of the names."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def load_packages() -> griffe.ModulesCollection:
    """The sources of the packages, read without an import."""
    loader = griffe.GriffeLoader(search_paths=sorted(ROOT.glob("interpretune-*/src")))
    for package in PACKAGES:
        loader.load(package, try_relative_path=False)
    loader.resolve_aliases(implicit=False, external=False)
    return loader.modules_collection


def reference_pages(names: Sequence[str], packages: griffe.ModulesCollection) -> dict[str, str]:
    """The page of each namespace.

    Args:
        names: Public names; where several lead to one object, the first is the one under which it is described.
        packages: The sources in which they are looked up.

    Returns:
        Markdown by path.
    """
    spaces = namespaces(names)
    described: dict[str, str] = {}
    sections: dict[str, dict[str, list[str]]] = {space: defaultdict(list) for space in spaces}
    elsewhere: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        space, _, short = name.rpartition(".")
        target = _target(name, packages)
        if target is None:
            continue
        first = name if name in spaces else described.setdefault(target.path, name)
        if first != name:
            elsewhere[space].append((short, first))
        else:
            sections[space][_folder(target)].append(name)
    return {
        f"reference/{space}.md": _page(space, sections[space], elsewhere[space], packages, spaces) for space in spaces
    }


def command_line_page() -> str:
    """What ``--help`` of each command prints."""
    overview = _help()
    parts = ["# Command line", "", "What `--help` prints.", "", _block("interpretune --help", overview)]
    for command in re.findall(r"^    ([a-z][\w-]*)", overview, re.MULTILINE):
        parts += [f"## interpretune {command}", "", _block(f"interpretune {command} --help", _help(command))]
    return "\n".join(parts)


def _rank(space: str) -> tuple[int, str]:
    """Namespaces that users import from come first."""
    first = ("interpretune", "interpretune.analysis")
    return (first.index(space) if space in first else len(first), space)


def _target(name: str, packages: griffe.ModulesCollection) -> griffe.Object | None:
    """What a public name stands for; None where it is missing, which is said."""
    try:
        found = packages[name]
        target = found.final_target if isinstance(found, griffe.Alias) else found
    except (KeyError, griffe.AliasResolutionError):
        log.warning("The public name %s does not exist.", name)
        return None
    if not target.has_docstring:
        log.warning("The public name %s has no docstring (%s).", name, target.path)
    return target


def _folder(target: griffe.Object) -> str:
    """The folder of a package in which an object is defined, or its module where that is in no folder."""
    return ".".join(target.module.path.split(".")[:2])


def _page(
    space: str,
    sections: dict[str, list[str]],
    elsewhere: Sequence[tuple[str, str]],
    packages: griffe.ModulesCollection,
    spaces: Sequence[str],
) -> str:
    about = packages[space].docstring
    lines = [f"# {space}", "", about.value if about else "", ""]
    several = len(sections) > 1
    for folder, names in sorted(sections.items()):
        if several:
            lines += [f"## {folder.rpartition('.')[2]}", ""]
            docstring = packages[folder].docstring
            lines += [docstring.value.partition("\n")[0], ""] if docstring else []
        for name in names:
            if name in spaces:
                lines += [f"[`{name}`]({name}.md) is a namespace of its own.", ""]
            else:
                lines += [f"::: {name}", "    options:", f"      heading_level: {3 if several else 2}", ""]
    if elsewhere:
        lines += ["## Described elsewhere", "", "| name | described as |", "| --- | --- |"]
        lines += [f"| `{short}` | [`{first}`][{first}] |" for short, first in elsewhere]
    return "\n".join(lines) + "\n"


def _help(*command: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    call = [sys.executable, "-m", "interpretune.cli.main", *command, "--help"]
    return subprocess.run(call, env=environment, capture_output=True, text=True, check=True).stdout


def _block(command: str, output: str) -> str:
    return f"```console\n$ {command}\n{output.rstrip()}\n```\n"

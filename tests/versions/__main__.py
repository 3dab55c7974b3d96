"""Makes environments with the lowest or newest versions that metadata allow, and runs some of the tests in them.

Runs with any Python, without a library: ``make test-lowest`` and ``make test-newest``, with ``PYTHON=python3.13`` for
another. torch is that of ``constraints.txt`` in all of them. Adapters may need newer libraries than core does, so core
has an environment without them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "core": ("interpretune-core", "interpretune-lightning"),
    "all": ("interpretune-core", "interpretune-lightning", "interpretune-saelens", "interpretune-tlens"),
}
SUBSETS = {
    "core": (
        *("tests/store/test_round_trips.py", "tests/session/test_session.py", "tests/questions/test_effects.py"),
        *("tests/reports/test_page.py", "tests/models/test_model_loading.py", "tests/lightning/test_trainer.py"),
        "--deselect=tests/lightning/test_trainer.py::test_a_checkpoint_of_another_stack_is_refused",
        "--deselect=tests/lightning/test_trainer.py::test_a_session_without_the_adapter_is_told_which_tuple_to_use",
    ),  # those two stack an adapter that is not there
    "all": (
        *("tests/store/test_round_trips.py", "tests/questions/test_effects.py", "tests/lightning/test_trainer.py"),
        *("tests/tlens/test_loading.py", "tests/saelens/test_loading.py", "tests/cli/test_cli.py"),
    ),
}
TOOLS = ("hypothesis", "jsonschema", "pytest")
"""What the subsets need beside the packages; pytest is the lowest that the kit takes, where all are the lowest."""
FROM_SOURCE = "transformers-stream-generator"
"""Needed by transformer-lens, and published without a wheel; nothing else is built, least of all old libraries."""
QUIET = ("--quiet", "--disable-pip-version-check", "--root-user-action=ignore")


def requirements(packages: Sequence[str]) -> list[str]:
    """What packages and their extras need, without each other."""
    found = []
    for name in packages:
        project = tomllib.loads((ROOT / name / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {})
        found += [*project["dependencies"], *(item for extra in extras.values() for item in extra)]
    return [item for item in found if not item.startswith("interpretune")]


def torch_pin() -> str:
    """The line of ``constraints.txt`` on torch."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def lowest(needed: Sequence[str], folder: Path) -> str:
    """Constraints to the lowest versions that requirements allow together, of what they name; uv finds them."""
    (folder / "requirements.txt").write_text("\n".join(needed), encoding="utf-8")
    (folder / "pin.txt").write_text(torch_pin(), encoding="utf-8")
    run(folder / "bin" / "python", "-m", "pip", "install", *QUIET, "uv")
    command = [folder / "bin" / "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--resolution", "lowest-direct", "--only-binary", ":all:", "--no-binary", FROM_SOURCE]
    command += ["--python", folder / "bin" / "python", "--constraint", folder / "pin.txt"]
    command += [folder / "requirements.txt"]
    settings = {**os.environ, "UV_SYSTEM_CERTS": "1"}
    done = subprocess.run(list(map(str, command)), check=False, stdout=subprocess.PIPE, text=True, env=settings)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def run(*command: object) -> None:
    """Run a command in the root of the workspace, or end with its status."""
    status = subprocess.run([str(part) for part in command], check=False, cwd=ROOT).returncode
    if status:
        sys.exit(status)


def environment(which: str, part: str) -> Path:
    """The folder of an environment, which is made anew where metadata have changed."""
    folder = ROOT / ".make" / f"{which}-{part}-{sys.version_info.major}.{sys.version_info.minor}"
    needed = requirements(PACKAGES[part])
    stamp, made_of = folder / "made-of.txt", hashlib.sha256("\n".join((torch_pin(), *needed)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == made_of:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", *QUIET, "--upgrade", "pip>=25.1")
    constraints = folder / "constraints.txt"
    constraints.write_text(lowest(needed, folder) if which == "lowest" else torch_pin(), encoding="utf-8")
    editable = [part for name in PACKAGES[part] for part in ("--editable", name)]
    strategy = () if which == "lowest" else ("--upgrade", "--upgrade-strategy", "eager")
    install = (folder / "bin" / "python", "-m", "pip", "install", *QUIET, "--constraint", constraints, *strategy)
    run(*install, *editable, *needed, *TOOLS)
    stamp.write_text(made_of, encoding="utf-8")
    return folder


def main() -> None:
    """Make the environments, and run the subsets in them."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("which", choices=("lowest", "newest"))
    given, further = parser.parse_known_args()
    for part, subset in SUBSETS.items():
        if part == "core" and given.which == "newest":
            continue  # adapters cap nothing that core has
        python = environment(given.which, part) / "bin" / "python"
        print(f"{given.which} versions, {part}, Python {sys.version.split()[0]}: {python}", flush=True)
        options = ("-p", "no:cacheprovider", "-o", "filterwarnings=default", "--disable-warnings")
        run(python, "-m", "pytest", "-q", *options, *subset, *further)


if __name__ == "__main__":
    main()

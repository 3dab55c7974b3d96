"""A virtual environment as a stranger has it: the libraries, of interpretune's distributions only what is installed.

Third-party libraries are links to those of the running environment, so that nothing is downloaded and making an
environment takes a fraction of a second. Packages are built and installed from their folders, not editable.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

ROOT = Path(__file__).parents[1]
CORE = ROOT / "interpretune-core"


FORKING = """
import importlib, json, os, sys, traceback, warnings

for library in ("datasets", "torch", "transformers", "interpretune.adapters.core"):
    importlib.import_module(library)
sys.warnoptions.clear()
warnings.resetwarnings()
for line in sys.stdin:
    code, sys.argv, folder, said, errors = json.loads(line)
    child = os.fork()
    if not child:
        for stream, file in ((1, said), (2, errors)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.chdir(folder)
        importlib.invalidate_caches()
        status = 1
        try:
            exec(compile(code, "program", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""
"""Imports the libraries, with warnings as errors, and forks for every program, without them."""


class Programs:
    """Programs in an environment, each in a process of its own that has the libraries imported."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(self, code: str, *arguments: object, cwd: Path | None = None) -> str:
        """Run code with arguments as ``sys.argv``, see that it ends well, and return what it printed."""
        said, errors = self._folder / "said", self._folder / "errors"
        job = [code, [*map(str, arguments)], *map(str, (cwd or self._folder, said, errors))]
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(job), file=self._process.stdin, flush=True)
        status = self._process.stdout.readline().strip()
        printed = said.read_text(encoding="utf-8")
        assert status == "0", f"{code}\n{printed[-6000:]}\n{errors.read_text(encoding='utf-8')[-3000:]}"
        return printed

    def command(self, *arguments: object, cwd: Path | None = None) -> str:
        """Run a command of interpretune."""
        return self.run(
            "import sys; from interpretune.cli.main import main; sys.exit(main(sys.argv))", *arguments, cwd=cwd
        )

    def pytest(self, *arguments: object, cwd: Path | None = None) -> str:
        """Run pytest."""
        return self.run("import sys, pytest; sys.exit(pytest.main(sys.argv))", *arguments, cwd=cwd)


def _variables() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**inherited, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@frozen
class FreshEnvironment:
    """A virtual environment in a folder; make it with ``create``."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, without: tuple[str, ...] = ()) -> FreshEnvironment:
        """Make the environment, without any distribution of interpretune.

        Args:
            folder: Of the environment.
            without: Names, as in imports, of libraries that are left out.
        """
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
        environment = cls(folder)
        linked = folder / "linked"
        linked.mkdir()
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for item in Path(place).iterdir():
                # paths of editable packages stay out, and so does everything of interpretune
                if item.name.startswith(without):
                    continue
                if "interpretune" not in item.name and item.suffix != ".pth" and item.name != "__pycache__":
                    (linked / item.name).symlink_to(item)
        own = environment.python("import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        (Path(own) / "linked.pth").write_text(f"{linked}\n", encoding="utf-8")
        return environment

    def run(self, *command: object, cwd: Path | None = None, returncode: int = 0) -> str:
        """Run a program of the environment, and see how it ends.

        Args:
            *command: Name of the program and its arguments.
            cwd: Where to run it; None: in the environment's folder.
            returncode: How it must end.

        Returns:
            What it printed.
        """
        program, *arguments = map(str, command)
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            check=False,
            cwd=cwd or self.folder,
            env=_variables(),
            capture_output=True,
            text=True,
            timeout=600,  # a suite takes half a minute on an idle machine
        )
        assert done.returncode == returncode, f"{program} {arguments}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def python(self, code: str, **options: Any) -> str:
        """Run Python code, and return what it printed; options are those of ``run``."""
        return self.run("python", "-c", code, **options)

    @contextlib.contextmanager
    def programs(self, folder: Path) -> Iterator[Programs]:
        """Have programs run in processes forked from one that has imported core and its libraries.

        Args:
            folder: For what they print, and where they run if nothing else is asked.
        """
        process = subprocess.Popen(
            [self.folder / "bin" / "python", "-W", "error", "-c", FORKING],
            cwd=folder,
            env=_variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            yield Programs(process, folder)

    def install(self, *packages: Path) -> None:
        """Build packages from their folders and install them, without a network."""
        flags = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
        self.run("python", "-m", "pip", "install", *flags, *packages)

    def adapters(self) -> dict[str, dict[str, Any]]:
        """What ``interpretune adapters --json`` lists, by name."""
        rows = json.loads(self.run("interpretune", "adapters", "--json"))
        return {row["name"]: row for row in rows}

"""A virtual environment as a stranger has it: the libraries, of interpretune's distributions only what is installed.

Third-party libraries are links to those of the running environment, so that nothing is downloaded and making an
environment takes a fraction of a second. Packages are built and installed from their folders, not editable.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from attrs import frozen

ROOT = Path(__file__).parents[1]
CORE = ROOT / "interpretune-core"


@frozen
class FreshEnvironment:
    """A virtual environment in a folder; make it with ``create``."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> FreshEnvironment:
        """Make the environment, without any distribution of interpretune."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
        environment = cls(folder)
        linked = folder / "linked"
        linked.mkdir()
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for item in Path(place).iterdir():
                # paths of editable packages stay out, and so does everything of interpretune
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
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            check=False,
            cwd=cwd or self.folder,
            env={**inherited, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=600,  # a suite takes half a minute on an idle machine
        )
        assert done.returncode == returncode, f"{program} {arguments}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def python(self, code: str, **options: Any) -> str:
        """Run Python code, and return what it printed; options are those of ``run``."""
        return self.run("python", "-c", code, **options)

    def install(self, *packages: Path) -> None:
        """Build packages from their folders and install them, without a network."""
        flags = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
        self.run("python", "-m", "pip", "install", *flags, *packages)

    def adapters(self) -> dict[str, dict[str, Any]]:
        """What ``interpretune adapters --json`` lists, by name."""
        rows = json.loads(self.run("interpretune", "adapters", "--json"))
        return {row["name"]: row for row in rows}

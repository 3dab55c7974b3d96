"""Makes an environment with TransformerLens 4 beside the workspace's: ``python -m tests.tlens4.environment FOLDER``.

All other libraries are those of the workspace, as links, so that nothing else is downloaded: numbers may differ by
TransformerLens alone. SAELens, which asks for TransformerLens below 4, is not in it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.fresh_environment import CORE, ROOT, FreshEnvironment

OTHER_VERSION = ROOT / "constraints-tlens4.txt"
REPLACED = ("transformer_lens", "sae_lens")


def main(folder: Path) -> None:
    """Make the environment anew."""
    shutil.rmtree(folder, ignore_errors=True)
    environment = FreshEnvironment.create(folder, without=REPLACED)
    [wanted] = [line for line in OTHER_VERSION.read_text().splitlines() if line and not line.startswith("#")]
    others = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.replace("-", "_").startswith(REPLACED)
    ]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join([*others, wanted, ""]))
    pip = ("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    environment.run(*pip, "--constraint", constraints, wanted)
    environment.run(*pip, "--no-deps", "--editable", CORE, "--editable", ROOT / "interpretune-tlens")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

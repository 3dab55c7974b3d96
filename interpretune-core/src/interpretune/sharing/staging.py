"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from interpretune.errors import StoreError
from interpretune.store.folder import read_refused
from interpretune.system.plain_files import open_plain


@contextlib.contextmanager
def partial_folder(place: Path) -> Iterator[Path]:
    """A new folder beside ``place`` to fill; it is removed when the block ends, unless it was moved away."""
    partial = _beside(place)
    with writing(place):
        partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_plain(source: Path, target: Path) -> int:
    """Copy a plain file to where nothing is (``StoreError``); returns its bytes."""
    try:
        file = open_plain(source)
    except OSError as error:
        raise read_refused(source, error) from error
    with file, writing(target):
        target.parent.mkdir(exist_ok=True)
        with target.open("xb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
            return out.tell()


def move_into(partial: Path, place: Path, *, replace: bool) -> None:
    """Give a folder that is whole its place, in one step; ``StoreError`` if it is taken or cannot be written."""
    with writing(place):
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            try:
                partial.replace(place)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # somebody was faster
                    raise taken(place) from error
                raise
            return
        if not replace:
            raise taken(place)
        old = _beside(place)
        place.replace(old)
        try:
            partial.replace(place)
        except OSError:
            old.replace(place)
            raise
    shutil.rmtree(old, ignore_errors=True)


def taken(place: object) -> StoreError:
    """The error for a place where something is already."""
    return StoreError(f"{place} is there already. Choose another place, or say `overwrite=True` if it is a store.")


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Say of a failure to write where it was and what to do, as ``StoreError``."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{place} cannot be written ({error.strerror or error}); nothing was left there. Free some space, or "
            "choose a place that you may write."
        ) from error


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}.partial")

"""One hash for everything that results depend on.

It is equal where two things hold and compute the same, and differs where anything in them does, at whatever depth and
in whatever kind of attribute, container, closure or module.

What an object holds is written down as ``Content`` (``object_state``, ``code_state``) and hashed part by part, without
recursion, through cycles. What cannot be read (locks, open files, objects of C extensions without a state) is never
left out and never guessed: ``ContentHash.unknown`` says what and where, and whoever asked reuses nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from attrs import define, field, frozen
from torch import nn

from interpretune.errors import UnknownContentError
from interpretune.hashing.content import DIGEST, Content, Noted, Raw, UnknownState, leaf_of
from interpretune.hashing.object_state import content_of, tells_identity
from interpretune.hashing.tensor_content import digests_of_weights, is_plain_tensor, tensor_digest


@frozen
class ContentHash:
    """What is known of a thing.

    Attributes:
        sha256: Of all that can be read in it, 64 hexadecimal digits.
        unknown: What cannot be read, in words: where it is and what it is. If there is anything, equal hashes mean
            nothing.
    """

    sha256: str
    unknown: tuple[str, ...] = ()

    @property
    def why_unknown(self) -> str:
        """What cannot be read first of all, and what to do about it; empty where everything can be."""
        return f"{self.unknown[0]} {WHAT_TO_DO}" if self.unknown else ""


def hash_of(value: Any, owner: str) -> str:
    """Hash of what something depends on; ``UnknownContentError`` if some of it cannot be read."""
    found = content_hash(value, owner)
    if found.unknown:
        raise UnknownContentError(found.why_unknown)
    return found.sha256


def content_hash(
    value: Any,
    owner: str,
    ignored: Collection[str] = (),
    sources: Collection[object] = (),
    *,
    library: str | None = None,
) -> ContentHash:
    """Hash of all that can be read in a thing, and what cannot be.

    Args:
        value: Anything.
        owner: What depends on it, in words.
        ignored: Names of attributes that a forward changes and no result depends on, and of functions hooked in.
        sources: Configurations whose ``NAMES_NOTHING`` say where they are from, not what they compute; of copies too.
        library: Top-level package to whose objects and functions ``ignored`` applies; None: to all.
    """
    kinds = {type(item) for item in sources if not isinstance(item, dict)}
    hasher = _Hasher(owner, Noted(frozenset(ignored), library), frozenset([*map(id, sources), *map(id, kinds)]))
    if isinstance(value, nn.Module) and not tells_identity(value):
        hasher.know(digests_of_weights(value))
    digest = hasher.of(value)
    return ContentHash(digest.hex(), tuple(dict.fromkeys(hasher.unknown)))


WHAT_TO_DO = (
    "Give it as numbers, strings, tensors and modules, or give its class a method identity() that returns what results "
    "depend on, so that other settings are never taken for the same analysis."
)


@define(eq=False)
class _Frame:
    """A thing whose parts are being told."""

    key: int | None
    content: Content
    depth: int
    lowest: int
    told: list[bytes] = field(factory=list)

    def tell(self, known: bytes) -> None:
        """Take down the next part: its label, and a plain value or a digest."""
        label = self.content.parts[len(self.told)][0].encode()
        self.told.append(b"%d %d " % (len(label), len(known)) + label + known)

    def digest(self) -> bytes:
        head = self.content.kind.encode()
        told = sorted(self.told) if self.content.unordered else self.told
        return hashlib.sha256(b"".join([b"%d %d " % (len(head), len(told)), head, *told])).digest()


class _Hasher:
    """Goes through one thing.

    Things that are met twice are hashed once. One that is met inside of itself counts by how far up it is; one that was
    met and holds itself counts by its number afterwards, since its hash says nothing outside of its cycle.
    """

    def __init__(self, owner: str, ignored: Noted, sources: frozenset[int]) -> None:
        self.unknown: list[str] = []
        self._owner = owner
        self._ignored, self._sources = ignored, sources
        self._open: dict[int, int] = {}
        self._done: dict[int, bytes] = {}
        self._cyclic: dict[int, int] = {}
        self._kept: list[Any] = []
        self._outer = ""
        self._lowest = 0

    def know(self, digests: Mapping[int, bytes]) -> None:
        """Take over digests of things, by id, that live at least as long as what is being hashed."""
        self._done.update(digests)

    def of(self, value: Any) -> bytes:
        """Digest of a value, 32 bytes."""
        frames = [_Frame(None, Content("root", [("", value)]), len(self._open), len(self._open))]
        while True:
            frame = frames[-1]
            if len(frame.told) == len(frame.content.parts):
                digest = self._finish(frames)
                if not frames:
                    self._lowest = frame.lowest
                    return digest
                frames[-1].tell(DIGEST + digest)
                continue
            entered = self._enter(frame.content.parts[len(frame.told)][1], frames)
            if isinstance(entered, bytes):
                frame.tell(entered)
            else:
                frames.append(entered)

    def _enter(self, value: Any, frames: list[_Frame]) -> bytes | _Frame:
        """Bytes of what is plain or known, or a thing to tell first."""
        if type(value) is Content:
            return self._frame(None, value, frames)
        leaf = leaf_of(value)
        if leaf is not None:
            return leaf
        key = id(value)
        if key in self._open:
            frames[-1].lowest = min(frames[-1].lowest, self._open[key])
            return f"inside itself {self._open[key]}".encode()
        if key in self._cyclic:
            return f"cycle {self._cyclic[key]}".encode()
        if key not in self._done:
            self._kept.append(value)
            if not is_plain_tensor(value):
                return self._frame(key, self._content(value, frames), frames)
            self._done[key] = tensor_digest(value)
        return DIGEST + self._done[key]

    def _frame(self, key: int | None, content: Content, frames: list[_Frame]) -> _Frame:
        depth = lowest = len(self._open)
        if key is not None:
            self._open[key] = depth
        if content.unordered:
            members = [self._alone(item, frames) for _, item in content.parts]
            lowest = min([depth, *(reached for _, reached in members)])
            content = Content(content.kind, [("", Raw(digest)) for digest, _ in members], unordered=True)
        return _Frame(key, content, depth, lowest)

    def _alone(self, value: Any, frames: list[_Frame]) -> tuple[bytes, int]:
        """Digest of a member of a set, and how far up something in it refers.

        It does not depend on what was met before, since members come in any order.
        """
        leaf = leaf_of(value)
        if leaf is not None:
            return hashlib.sha256(leaf).digest(), len(self._open)
        inner = _Hasher(self._owner, self._ignored, self._sources)
        inner._open = dict(self._open)
        inner._outer = self._path(frames)
        digest = inner.of(value)
        self.unknown += inner.unknown
        return digest, inner._lowest

    def _finish(self, frames: list[_Frame]) -> bytes:
        frame = frames.pop()
        digest = frame.digest()
        if frame.key is not None:
            del self._open[frame.key]
            if frame.lowest < frame.depth:
                self._cyclic[frame.key] = len(self._cyclic)
            else:
                self._done[frame.key] = digest
        if frames:
            frames[-1].lowest = min(frames[-1].lowest, frame.lowest)
        return digest

    def _content(self, value: Any, frames: list[_Frame]) -> Content:
        """What a value holds; of what cannot be read, its class, and a note."""
        try:
            told = not {id(value), id(type(value))}.isdisjoint(self._sources)
            content = content_of(value, self._ignored, from_somewhere=told)
        except UnknownState as unknown:
            where, kind = self._path(frames), type(value).__name__
            if any(frame.content.kind == "identity" for frame in frames):
                raise UnknownContentError(
                    f"{self._owner}: what identity() returns at {where} is a {kind}, whose content cannot be hashed. "
                    "Return numbers, strings, tensors and containers of these."
                ) from unknown
            reason = f" ({unknown})" if str(unknown) else ""
            place = f", at {where}" if where else ""
            self.unknown.append(f"{self._owner} depends on a {kind}, whose content cannot be hashed{reason}{place}.")
            return Content(f"unknown {type(value).__module__}.{type(value).__qualname__}", [])
        return content

    def _path(self, frames: list[_Frame]) -> str:
        """Where the part is that is being entered, as one would write it."""
        return self._outer + "".join(frame.content.parts[len(frame.told)][0] for frame in frames)

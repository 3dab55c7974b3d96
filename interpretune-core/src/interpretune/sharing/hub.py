"""Stores as data set repositories on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import field, frozen, validators
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from interpretune.errors import StoreError
from interpretune.sharing.archive import Limits, too_large
from interpretune.sharing.layout import CARD, FOLDERS, belongs
from interpretune.store.folder import MANIFEST, MANIFEST_BYTES

_SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^@]+))?/?")


@frozen
class HubRepository:
    """A data set repository, for more than its address says.

    Attributes:
        repo_id: ``owner/name``.
        revision: Branch, tag or commit; None: ``main``.
        token: Access token; None: the one that was saved on logging in.
        endpoint: Address of the hub; None: the usual one.
        private: Whether a new repository is private; None: as its owner's default says.
    """

    repo_id: str = field(validator=validators.matches_re(r"[\w.-]+/[\w.-]+"))
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    endpoint: str | None = None
    private: bool | None = None

    @classmethod
    def parse(cls, address: str) -> HubRepository:
        """Read ``hf://datasets/owner/name`` or ``hf://datasets/owner/name@revision``.

        Raises:
            StoreError: It is something else.
        """
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise StoreError(
                f"{address!r} is no data set repository. Stores lie at the root of one: hf://datasets/owner/name, with "
                "@revision where it is not `main`."
            )
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"hf://datasets/{self.repo_id}" + (f"@{self.revision}" if self.revision else "")

    @property
    def _api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token)

    @property
    def _where(self) -> dict[str, Any]:
        return {"repo_id": self.repo_id, "repo_type": "dataset"}

    def put(self, files: Iterable[tuple[str, Path]], card: str, message: str, *, replace: bool) -> str:
        """Make the repository hold exactly this store, in one commit; other files in it stay.

        Returns:
            The address with the commit.

        Raises:
            StoreError: The hub refuses or cannot be reached, or the repository has a store and ``replace`` is False.
        """
        added = {place: CommitOperationAdd(place, path) for place, path in files}
        with self._asking("written"):
            self._api.create_repo(**self._where, private=self.private, exist_ok=True)
            there = self._sizes(self.revision)
            if MANIFEST in there and not replace:
                raise StoreError(f"{self} has a store already. Choose another name, or say `overwrite=True`.")
            stale = [name for name in there if name.split("/")[0] in FOLDERS and name not in added]
            commit = self._api.create_commit(
                **self._where,
                operations=[
                    CommitOperationAdd(CARD, card.encode()),
                    *added.values(),
                    *(CommitOperationDelete(name, is_folder=False) for name in stale),
                ],
                commit_message=message,
                revision=self.revision,
            )
        return f"hf://datasets/{self.repo_id}@{commit.oid}"

    def commit(self) -> HubRepository:
        """The same repository at the commit that its revision means now."""
        with self._asking("read"):
            sha = self._api.repo_info(**self._where, revision=self.revision).sha
        return HubRepository(self.repo_id, sha, self.token, self.endpoint)

    def manifest(self) -> bytes:
        """The manifest, read on its own."""
        with self._asking("read"), tempfile.TemporaryDirectory(prefix="interpretune-") as folder:
            size = self._sizes(self.revision).get(MANIFEST)
            if size is None:
                raise StoreError(f"There is no store at {self}: it has no {MANIFEST}. Check the name and the revision.")
            if size > MANIFEST_BYTES:
                raise StoreError(f"The manifest of {self} has more than {MANIFEST_BYTES:,} bytes: it is none.")
            file = self._api.hf_hub_download(**self._where, filename=MANIFEST, revision=self.revision, local_dir=folder)
            return Path(file).read_bytes()

    def fetch(self, places: Iterable[str] | None, folder: Path, limits: Limits) -> None:
        """Copy the named files into a folder, and the card; no other file is looked at. None: all of a store."""
        with self._asking("read"):
            sizes = self._sizes(self.revision)
            named = [place for place in sizes if belongs(place)] if places is None else places
            wanted = {*named, *([CARD] if CARD in sizes else [])}
            absent = [place for place in sorted(wanted) if place not in sizes]
            if absent:
                raise StoreError(f"{self} lacks {', '.join(absent)}, which its manifest names. Ask its author.")
            if sum(sizes[place] for place in wanted) > limits.max_bytes:
                raise too_large(str(self), limits)
            self._api.snapshot_download(
                **self._where, revision=self.revision, local_dir=folder, allow_patterns=sorted(wanted)
            )
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's own notes

    def _sizes(self, revision: str | None) -> dict[str, int]:
        tree = self._api.list_repo_tree(**self._where, recursive=True, revision=revision)
        return {item.path: item.size for item in tree if isinstance(item, RepoFile)}

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Say of any failure what to do; the errors of the connection differ between the hub client's versions."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"{self} cannot be {what}: {_explain(error)}") from error


def is_hub_address(address: str) -> bool:
    """Whether an address is one of the Hub."""
    return address.startswith(_SCHEME)


def _explain(error: BaseException) -> str:
    """What went wrong and what to do, in words."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # uploads wrap what the hub answered
        error = error.__cause__
    said = " ".join(str(error).split())
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "the hub client is offline. Unset HF_HUB_OFFLINE, or share through a folder or an archive."
    if isinstance(error, GatedRepoError):
        return "its owner has to let you in. Ask for access on its page."
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision. Check the part after @, or leave it out; branches are made on the hub."
    if status == 401:
        return (
            "the hub has no such repository, or does not know you (401). Check the name, log in with `hf auth login`, "
            "or give `HubRepository(token=...)`."
        )
    if status == 403:
        return "you may not do that (403). Use a token with write access to it, or a name of your own."
    if isinstance(error, (RepositoryNotFoundError, EntryNotFoundError)):
        return "there is no such repository, or it is private (404). Check owner and name, or log in."
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {said}. Try again later."
    if isinstance(error, ValueError):
        return f"{said}."
    return (
        f"the hub cannot be reached ({type(error).__name__}: {said}). Check the connection, or share through a folder "
        "or an archive."
    )

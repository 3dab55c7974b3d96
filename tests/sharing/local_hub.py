"""A stand-in for the Hub's HTTP API on loopback: the calls that the hub's client makes for data set repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import define, field


@define
class Repository:
    """Commits of one repository, each a mapping from path to content; the last is ``main``."""

    commits: dict[str, dict[str, bytes]] = field(factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        listing = json.dumps(
            [len(self.commits), *[[k, hashlib.sha256(v).hexdigest()] for k, v in sorted(files.items())]]
        )
        oid = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[oid] = files
        return oid

    def find(self, revision: str) -> str | None:
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None


@define
class LocalHub:
    """What the server holds, and what was asked of it.

    Attributes:
        endpoint: Its address.
        lfs: Whether Parquet files go through the large file storage, as on the real Hub.
        token: Needed for writing, and for reading what is private; everyone else gets 401.
        fail: Status with which every call is answered; None: none.
        cut: Paths whose downloads end after half of their bytes.
        repositories: By ``owner/name``.
        objects: Contents in the large file storage, by hash.
        calls: Method and path of each call.
    """

    endpoint: str = ""
    lfs: bool = False
    token: str = "hf_test"
    fail: int | None = None
    cut: set[str] = field(factory=set)
    repositories: dict[str, Repository] = field(factory=dict)
    objects: dict[str, bytes] = field(factory=dict)
    calls: list[str] = field(factory=list)

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Files of a repository's main branch."""
        repository = self.repositories[repo_id]
        return repository.commits[list(repository.commits)[-1]]


@contextmanager
def local_hub(**settings: Any) -> Iterator[LocalHub]:
    """Serve until the block ends."""
    hub = LocalHub(**settings)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body follows its headers at once

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    # ------------------------------------------------------------------------------------------------------------ parts

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.calls.append(f"{self.command} {path}")
        self.body = self._read()
        if self.hub.fail is not None:
            self._answer(self.hub.fail, {"error": "on purpose"})
            return
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "repos"]:
            self._create()
        elif parts[:2] == ["api", "validate-yaml"]:
            self._answer(200, {"errors": [], "warnings": []})
        elif parts[0] == "objects":
            self.hub.objects[parts[1]] = self.body
            self._answer(200, {})
        elif parts[:2] == ["api", "datasets"]:
            self._api("/".join(parts[2:4]), parts[4:] or ["revision", "main"])
        elif parts[0] == "datasets" and parts[2].removesuffix(".git") + "/" + parts[3] and parts[3] == "info":
            self._large_files()
        elif parts[0] == "datasets" and parts[3] == "resolve":
            self._resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self._answer(404, {"error": f"no such call: {path}"})

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _create(self) -> None:
        if not self._known():
            self._answer(401, {"error": "Invalid username or password."})
            return
        asked = json.loads(self.body)
        assert asked["type"] == "dataset"
        repo_id = f"{asked['organization']}/{asked['name']}"
        if repo_id in self.hub.repositories:
            self._answer(409, {"error": "You already created this dataset repo", "url": self._page(repo_id)})
            return
        repository = self.hub.repositories[repo_id] = Repository(private=asked.get("visibility") == "private")
        repository.commit({".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"})
        self._answer(200, {"url": self._page(repo_id)})

    def _page(self, repo_id: str) -> str:
        return f"{self.hub.endpoint}/datasets/{repo_id}"

    def _found(self, repo_id: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self._known()):
            self._answer(
                404 if self._known() else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            )
            return None
        oid = repository.find(revision)
        if oid is None:
            self._answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository, oid

    def _api(self, repo_id: str, rest: list[str]) -> None:
        found = self._found(repo_id, "/".join(rest[1:]) if rest[0] != "tree" else rest[1])
        if found is None:
            return
        repository, oid = found
        files = repository.commits[oid]
        if rest[0] == "revision":
            siblings = [{"rfilename": path} for path in files]
            self._answer(
                200, {"id": repo_id, "sha": oid, "private": repository.private, "tags": [], "siblings": siblings}
            )
        elif rest[0] == "tree":
            self._answer(200, [self._entry(path, content) for path, content in files.items()])
        elif rest[0] == "preupload":
            asked = [item["path"] for item in json.loads(self.body)["files"]]
            mode = {path: "lfs" if self.hub.lfs and path.endswith(".parquet") else "regular" for path in asked}
            self._answer(
                200,
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False, "oid": None} for p, m in mode.items()]},
            )
        elif rest[0] == "commit":
            self._commit(repo_id, repository, dict(files))
        else:
            self._answer(404, {"error": f"no such call: {rest}"})

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
        if self.hub.lfs and path.endswith(".parquet"):
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
        return entry

    def _commit(self, repo_id: str, repository: Repository, files: dict[str, bytes]) -> None:
        if not self._known():
            self._answer(403, {"error": "no write access"})
            return
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert item["key"] == "header", item
        oid = repository.commit(files)
        url = f"{self._page(repo_id)}/commit/{oid}"
        self._answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _large_files(self) -> None:
        asked = json.loads(self.body)["objects"]
        answers = []
        for item in asked:
            upload = {"href": f"{self.hub.endpoint}/objects/{item['oid']}"}
            known = item["oid"] in self.hub.objects
            answers.append({**item, **({} if known else {"actions": {"upload": upload}})})
        self._answer(200, {"transfer": "basic", "objects": answers})

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        found = self._found(repo_id, revision)
        if found is None:
            return
        repository, oid = found
        content = repository.commits[oid].get(path)
        if content is None:
            self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
            return
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_git_hash(content)}"', "Accept-Ranges": "bytes"}
        self._answer(200, content, headers, cut=path in self.hub.cut)

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = self.close_connection or cut


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

"""A small server that speaks the protocol of the Hugging Face hub: repositories, large files, commits, errors.

It keeps everything in memory. What it answers, and in which headers, is what huggingface_hub relies on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_owner"


@dataclass
class Repository:
    """Its commits, each a whole tree {path: content}; the last is main."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add `files` to what is there; returns the new commit."""
        tree = {**(self.commits[-1][1] if self.commits else {}), **files}
        text = f"{len(self.commits)}" + "".join(
            f"{path}{hashlib.sha1(tree[path]).hexdigest()}" for path in sorted(tree)
        )
        self.commits.append((hashlib.sha1(text.encode()).hexdigest(), tree))
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = [commit for commit in self.commits if commit[0] == revision]
        return (self.commits[-1] if revision == "main" and self.commits else None) if not found else found[0]


@dataclass
class Hub:
    """The address of the server, its repositories, its large files by SHA-256, and every request it had.

    Large files are `elsewhere`, under another name of this machine: their redirect is not followed for the headers.
    `meets` is called with the number of every request, from 1, before it is answered.
    """

    url: str
    elsewhere: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    meets: Callable[[int], object] = lambda number: None

    def add(self, name: str, files: dict[str, bytes], **options: bool) -> str:
        """A repository with `files`; returns its commit."""
        return self.repositories.setdefault(name, Repository(**options)).commit(files)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on this machine, as long as it is used."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    port = server.server_address[1]
    hub = Hub(f"http://127.0.0.1:{port}", f"http://localhost:{port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        self._note()
        if found := re.fullmatch(r"/large/(\w+)", self.path):
            self._answer(200, self.hub.large[found[1]], {"ETag": f'"{found[1]}"'})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            self._file(found[1], found[2], found[3])
        else:
            self._answer(404, b"")

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._is_owner()):
            return self._answer(401, b"Invalid username or password.", {"X-Error-Code": "RepoNotFound"})
        if repository.gated and not self._is_owner():
            return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        found = repository.at(revision)
        if found is None:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        commit, tree = found
        if path not in tree:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = tree[path]
        if _is_large(path):  # kept elsewhere
            digest = hashlib.sha256(content).hexdigest()
            self.hub.large[digest] = content
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return self._answer(
                302, b"", {"Location": f"{self.hub.elsewhere}/large/{digest}", "X-Repo-Commit": commit, **linked}
            )
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return self._answer(200, content, {"ETag": f'"{blob}"', "X-Repo-Commit": commit})

    def do_PUT(self) -> None:
        self._note()
        content = self._body()
        digest = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != digest:
            return self._answer(400, b"")
        self.hub.large[digest] = content
        return self._answer(200, b"")

    def do_POST(self) -> None:
        self._note()
        body = self._body()
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if not self._is_owner():
            return self._answer(401, b"Invalid username or password.")
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if _is_large(one["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            return self._commit(found[1], body)
        return self._answer(404, b"")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self._json({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private=private)
        self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {"oid": one["oid"], "size": one["size"]}
            | (
                {}
                if one["oid"] in self.hub.large
                else {"actions": {"upload": {"href": f"{self.hub.url}/put/{one['oid']}"}}}
            )
            for one in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        files: dict[str, bytes] = {}
        for item in map(json.loads, body.splitlines()):
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        commit = self.hub.repositories[name].commit(files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _note(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        self.hub.meets(len(self.hub.asked))

    def _is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, data: dict[str, Any], code: int = 200) -> None:
        self._answer(code, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

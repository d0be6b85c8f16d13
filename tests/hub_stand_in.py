"""A stand-in for the Hugging Face hub on this machine: repositories in memory, as much of its API as pushing and
fetching a model use, and the failures that a test asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

TOKEN = "hf_stand_in"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class Hub:
    """What is on it, what was asked of it, and what it answers in the place of the truth."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256."""
    asked: list[str] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    """Status by a pattern of "METHOD path"."""
    address: str = ""


@contextmanager
def stand_in() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    do_HEAD = do_GET  # what is sent is cut there

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self.chunks())
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        for pattern, status in self.hub.failures.items():
            if re.search(pattern, f"{self.command} {path}"):
                return self.send(status, {"error": "as the test asked"})
        if method != "PUT" and self.headers.get("Authorization") not in (f"Bearer {TOKEN}", None):
            return self.send(401, {"error": "Invalid credentials"})
        for name, pattern in ROUTES.items():
            if found := re.fullmatch(pattern, path):
                return getattr(self, name)(body, *found.groups())
        self.send(404, {"error": f"no route for {path}"})

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        there = name in self.hub.repositories
        if not there:
            self.hub.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.send(409 if there else 200, {"url": f"{self.hub.address}/{name}", "id": name, "name": name})

    def validate(self, body: bytes) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.headers.get("Authorization") is None):
            return self.send(401, {"error": "Repository not found"}, **{"X-Error-Code": "RepoNotFound"})
        files = [{"rfilename": file} for file in sorted(repository.files)]
        self.send(200, {"id": name, "sha": repository.sha, "siblings": files})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        listed = [
            {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for file, data in sorted(self.hub.repositories[name].files.items())
        ]
        self.send(200, listed)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        modes = [
            {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
            for each in json.loads(body)["files"]
        ]
        self.send(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})

    def batch(self, body: bytes, name: str) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.address}/store/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.stored[oid] = body
        self.send(200, {})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository, lines = self.hub.repositories[name], [json.loads(line) for line in body.splitlines() if line]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
            else:
                repository.commits.append(value["summary"])
        address = f"{self.hub.address}/{name}/commit/{repository.sha}"
        self.send(200, {"commitUrl": address, "commitOid": repository.sha})

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> None:
        repository = self.hub.repositories[name]
        data = repository.files.get(file)
        if data is None:
            return self.send(404, {"error": "Entry not found"}, **{"X-Error-Code": "EntryNotFound"})
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.send(200, data, **{"ETag": tag, "X-Repo-Commit": repository.sha})

    def send(self, status: int, value: object, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


ROUTES = {
    "create": r"/api/repos/create",
    "validate": r"/api/validate-yaml",
    "tree": r"/api/models/([^/]+/[^/]+)/tree/([^/]+)",
    "preupload": r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)",
    "commit": r"/api/models/([^/]+/[^/]+)/commit/([^/]+)",
    "info": r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?",
    "batch": r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "store": r"/store/([0-9a-f]{64})",
    "resolve": r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)",
}

"""A stand-in for the hub's HTTP API on loopback: making a repository, uploads of small and of LFS files, commits.

It keeps what it was sent; of a file it keeps the bytes, by path, once a commit names it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LFS = (".safetensors", ".bin")


class Hub(ThreadingHTTPServer):
    """refuse: status with which making a repository is answered, if not 0."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}  # committed, by path
        self.modes: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}  # uploaded, by sha256
        self.commits: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, authorization
        self.refuse = 0


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _noted(self) -> bytes:
        body = self._body()
        self.server.requests.append((self.command, self.path, self.headers.get("Authorization")))
        return body

    def do_POST(self) -> None:
        hub, body = self.server, self._noted()
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            if hub.refuse:
                return self._answer({"error": "You may not write there"}, hub.refuse)
            if name in hub.repositories:
                return self._answer({"error": "You already created this repo", "url": f"{hub.address}/{name}"}, 409)
            hub.repositories[name] = given
            return self._answer({"url": f"{hub.address}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for one in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **one,
                    "actions": {
                        "upload": {"href": f"{hub.address}/lfs/{one['oid']}"},
                        "verify": {"href": f"{hub.address}/verify"},
                    },
                }
                for one in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if path == "/verify":
            given = json.loads(body)
            whole = len(hub.objects.get(given["oid"], b"")) == given["size"]
            return self._answer({}, 200 if whole else 404)
        if "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            if name not in hub.repositories:
                return self._answer({"error": f"no repository {name}"}, 404)
            self._commit([json.loads(line) for line in body.splitlines()])
            url = f"{hub.address}/{name}/commit/{'0' * 40}"
            return self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": url})
        return self._answer({"error": f"nothing at {path}"}, 404)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        hub = self.server
        hub.commits.append(lines[0]["value"])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                hub.files[value["path"]] = hub.objects[value["oid"]]
            hub.modes[value["path"]] = line["key"]

    def do_PUT(self) -> None:
        body = self._noted()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer({"error": "other bytes"}, 400)
        self.server.objects[oid] = body
        return self._answer({})

    def do_GET(self) -> None:
        self._noted()
        path = self.path.partition("?")[0]
        name = path.removeprefix("/api/models/")
        if name in self.server.repositories:
            return self._answer({"id": name, "sha": "0" * 40, "siblings": []})
        return self._answer({"error": f"nothing at {path}"}, 404)

    def do_HEAD(self) -> None:
        self._noted()
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """The server, while the context is open."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

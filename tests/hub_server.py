"""A stand-in for the hub on this machine: as much of its HTTP interface as uploads and downloads of models use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from threading import Event, Thread
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """One repository. With `fault` it answers nothing but this HTTP status, or "cut": it closes each connection, or
    "silent": it says nothing until it is `closed`, or "begun": no more than the headers.
    `broken` are sha256 of files whose upload fails; `received` counts what arrived, by sha256."""

    def __init__(self) -> None:
        self.exists = False
        self.private = True
        self.blobs: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.received: list[str] = []
        self.broken: set[str] = set()
        self.tokens: set[str | None] = set()
        self.url = ""
        self.fault: int | str = 0
        self.closed = Event()

    def commit(self, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self, value: object = None, status: int = 200, **headers: str) -> None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self) -> None:
            path, data = urlparse(self.path).path, self.body()
            if hub.fault:
                self.refuse()
                return
            hub.tokens.add(self.headers.get("Authorization"))
            if path == "/api/repos/create":
                given = json.loads(data)
                hub.private = hub.private if hub.exists else given.get("visibility") == "private"
                hub.exists = True
                self.answer({"url": f"{hub.url}/a/b"})
            elif path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in path:
                asked = json.loads(data)["files"]
                large = [entry["path"].endswith((".safetensors", ".parquet")) for entry in asked]
                modes = [
                    {"path": entry["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
                    for entry, lfs in zip(asked, large, strict=True)
                ]
                self.answer({"files": modes})
            elif path.endswith("/info/lfs/objects/batch"):
                objects = [{**entry, **self.action(entry["oid"])} for entry in json.loads(data)["objects"]]
                self.answer({"transfer": "basic", "objects": objects})
            elif "/commit/" in path:
                hub.commit([json.loads(line) for line in data.splitlines()])
                self.answer({"commitUrl": f"{hub.url}/a/b/commit/{COMMIT}", "commitOid": COMMIT})
            else:
                self.answer({"error": path}, 404)

        @staticmethod
        def action(oid: str) -> dict:
            return {} if oid in hub.blobs else {"actions": {"upload": {"href": f"{hub.url}/upload/{oid}"}}}

        def do_PUT(self) -> None:
            oid, data = self.path.rpartition("/")[2], self.body()
            assert hashlib.sha256(data).hexdigest() == oid
            if oid in hub.broken:
                self.answer({"error": "no"}, 400)
                return
            hub.received.append(oid)
            hub.blobs[oid] = data
            self.answer({})

        def refuse(self) -> None:
            if hub.fault == "cut":
                self.close_connection = True
                self.connection.shutdown(SHUT_RDWR)
                return
            if hub.fault in ("silent", "begun"):
                if hub.fault == "begun":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                hub.closed.wait()
                self.close_connection = True
                return
            code = {403: "GatedRepo", 404: "RepoNotFound"}.get(int(hub.fault), "")
            self.answer({"error": "no"}, int(hub.fault), X_Error_Code=code)

        def do_GET(self) -> None:
            if hub.fault:
                self.refuse()
                return
            path = unquote(urlparse(self.path).path)
            if found := re.fullmatch(r"/a/b/resolve/[^/]+/(.+)", path):
                data = hub.files[found[1]]
                self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"')
            elif "/tree/" in path:
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in hub.files.items()
                ]
                self.answer(tree)
            elif path.startswith("/api/models/a/b"):
                siblings = [{"rfilename": name} for name in hub.files]
                self.answer({"id": "a/b", "sha": COMMIT, "private": hub.private, "siblings": siblings})
            else:
                self.answer({"error": path}, 404)

        do_HEAD = do_GET

    return Handler


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hub_in_use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """A running hub that huggingface_hub asks in this process, with its cache and the login's token below `folder`."""
    with hub_server() as running:
        for name, value in {
            "ENDPOINT": running.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_TOKEN_PATH": str(folder / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield running

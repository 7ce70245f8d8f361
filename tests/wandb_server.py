"""As much of W&B's server as an upload asks for; what it was sent is kept by the name of the query or the path."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

Sent = dict[str, list[Any]]


class Handler(http.server.BaseHTTPRequestHandler):
    sent: Sent

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        given: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            given = json.loads(body)
        query = re.search(r"(?:query|mutation)\s+(\w+)", given.get("query", ""))
        variables = given.get("variables") or {}
        self.sent[query[1] if query else self.path.rsplit("/", 1)[-1]].append(variables or given)
        self.reply({"data": self.answer(query[1], variables)} if query else {"exitcode": None, "limits": {}})

    do_PUT = do_GET = do_POST

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if query == "UpsertBucket":
            project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "team"}}
            return {
                "upsertBucket": {"inserted": True, "bucket": {"id": "b", "name": given["name"], "project": project}}
            }
        if query == "CreateArtifact":
            sequence = {"id": "s", "latestArtifact": {"id": "l", "versionIndex": 0}}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        if query == "CreateRunFiles":
            host, port = self.server.server_address[:2]
            files = [{"name": name, "uploadUrl": f"http://{host}:{port}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if query == "UseArtifact":
            return {"useArtifact": {"artifact": {"id": "a"}}}
        return {"serverInfo": {"features": []}, "viewer": {"id": "v", "entity": "team", "username": "u", "flags": "{}"}}

    def reply(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Keeps quiet."""


@contextlib.contextmanager
def standing_in() -> Iterator[tuple[str, Sent]]:
    """The address of a server, and what it is sent."""
    sent: Sent = defaultdict(list)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"sent": sent}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()

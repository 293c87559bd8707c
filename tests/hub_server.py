"""A Hugging Face hub on this machine, as far as `huggingface_hub` asks one for a model.

It stands in for the real hub, which no test reaches; it knows what the real one answers, not how it decides.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


class HubServer:
    """Serves one commit of one model from a folder; safetensors files count as large (LFS) files."""

    def __init__(self, folder: Path, repository: str, commit: str) -> None:
        self.folder, self.repository, self.commit = folder, repository, commit
        self.endpoint = ""
        self.downloads: list[str] = []
        self.corrupt: set[str] = set()
        """Files that are sent with one byte changed."""

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def describe(self, path: Path) -> dict[str, Any]:
        data = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - git's own digest
        entry: dict[str, Any] = {"size": len(data), "oid": git}
        if path.suffix == ".safetensors":
            entry["lfs"] = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "oid": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "pointerSize": 134,
            }
        return entry

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        api = f"/api/models/{self.repository}"
        if path == f"{api}/revision/{self.commit}":
            siblings = [
                {"rfilename": file.name, "blobId": entry.pop("oid"), **entry}
                for file in self.files()
                for entry in [self.describe(file)]
            ]
            return self._json({"id": self.repository, "sha": self.commit, "siblings": siblings})
        if path == f"{api}/tree/{self.commit}":
            return self._json(
                [{"type": "file", "path": file.name, **self.describe(file)} for file in self.files()]
            )
        prefix = f"/{self.repository}/resolve/{self.commit}/"
        file = self.folder / path.removeprefix(prefix)
        if path.startswith(prefix) and file.is_file():
            return self._file(file)
        known = path.startswith((api, f"/{self.repository}/"))
        code = "RevisionNotFound" if known else "RepoNotFound"
        return 404, {"X-Error-Code": code, "Content-Type": "application/json"}, b'{"error": "not found"}'

    def _file(self, file: Path) -> tuple[int, dict[str, str], bytes]:
        data, entry = file.read_bytes(), self.describe(file)
        if file.name in self.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        etag = entry["lfs"]["sha256"] if "lfs" in entry else entry["oid"]
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit}, data

    @staticmethod
    def _json(document: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()


@contextmanager
def serve_hub(folder: Path, repository: str, commit: str) -> Iterator[HubServer]:
    """Serve a model's folder as a hub would for the time of the block."""
    hub = HubServer(folder, repository, commit)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            status, headers, body = hub.answer(path)
            if self.command == "GET" and "/resolve/" in path:
                hub.downloads.append(path.rpartition("/")[2])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A Hugging Face hub on this machine, as far as `datasets` asks one for a dataset."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class DatasetHub:
    """Serves one commit of one dataset from a folder."""

    def __init__(self, folder: Path, repository: str) -> None:
        self.folder, self.repository = folder, repository
        self.asked: list[str] = []
        self.unknown: list[str] = []

    def files(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": path.relative_to(self.folder).as_posix(),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),  # noqa: S324 - git's own digest
            }
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        ]

    def answer(self, path: str, query: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        api, files = f"/api/datasets/{self.repository}", f"/datasets/{self.repository}/resolve/{COMMIT}/"
        if path in {api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"}:
            siblings = [{"rfilename": entry["path"]} for entry in self.files()]
            return self._json({"id": self.repository, "sha": COMMIT, "siblings": siblings, "tags": []})
        if path.startswith(f"{api}/tree/{COMMIT}"):
            below = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
            return self._tree(below, recursive="recursive=true" in query.lower())
        if path == f"{api}/paths-info/{COMMIT}":
            wanted = json.loads(body)["paths"]
            return self._json([entry for entry in self.files() if entry["path"] in wanted])
        if path.startswith(files) and (self.folder / path.removeprefix(files)).is_file():
            data = (self.folder / path.removeprefix(files)).read_bytes()
            tag = hashlib.sha1(data).hexdigest()  # noqa: S324
            return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, data
        known = path.startswith((api, f"/datasets/{self.repository}/"))
        self.unknown.append(path)
        code = "EntryNotFound" if path.startswith(files) else "RevisionNotFound" if known else "RepoNotFound"
        return 404, {"X-Error-Code": code, "Content-Type": "application/json"}, b'{"error": "not found"}'

    def _tree(self, below: str, *, recursive: bool) -> tuple[int, dict[str, str], bytes]:
        prefix = f"{below}/" if below else ""
        found: dict[str, dict[str, Any]] = {}
        for entry in self.files():
            inner, *rest = entry["path"].removeprefix(prefix).split("/", 1)
            if entry["path"].startswith(prefix) and rest:
                folder = {"type": "directory", "path": prefix + inner, "size": 0, "oid": "0" * 40}
                found.setdefault(prefix + inner, folder)
            if entry["path"].startswith(prefix) and (recursive or not rest):
                found[entry["path"]] = entry
        if below and not found:
            return 404, {"X-Error-Code": "EntryNotFound"}, b'{"error": "not found"}'
        return self._json(list(found.values()))

    @staticmethod
    def _json(document: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()


@contextmanager
def serve_dataset(folder: Path, repository: str) -> Iterator[tuple[DatasetHub, str]]:
    """Serve a dataset's folder as a hub would for the time of the block; gives it and the endpoint."""
    hub = DatasetHub(folder, repository)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, query = unquote(urlsplit(self.path).path), urlsplit(self.path).query
            hub.asked.append(f"{self.command} {path}")
            status, headers, data = hub.answer(path, query, body)
            asked = self.headers.get("Range")
            if status == 200 and asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                end = min(int(last or len(data)), len(data) - 1)
                headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
                status, data = 206, data[int(first) : end + 1]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = _answer  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield hub, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()

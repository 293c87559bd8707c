"""Serve the sample catalogue over HTTP on this machine, while a pipeline fetches from it."""

import hashlib
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from fovea.errors import UserError
from sample.catalogue import PLACEHOLDER

_MAGIC = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"<!DOCTYPE html": "text/html"}
_SUFFIX = {".csv": "text/csv; charset=utf-8", ".json": "application/json"}


class CatalogueServer:
    """An HTTP server for a folder, on 127.0.0.1 only, in threads of this process.

        with CatalogueServer(folder) as server:
            httpx.get(server.catalogue_url)

    It supports GET and HEAD with Content-Length and ETag, and If-None-Match with 304. In products.csv it
    replaces the catalogue's placeholder by its address. An ETag is the digest of the file as stored, so
    that of products.csv does not depend on the port.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Bind the port, a free one if it is 0; requests are answered once the context is entered.

        Raises:
            UserError: `folder` has no products.csv, or the port is in use.
        """
        if not (folder / "products.csv").is_file():
            raise UserError(
                f"There is no products.csv in {folder}: create it with `fovea sample-data --out {folder}`."
            )
        root = folder.resolve()

        class Handler(_Handler):
            folder = root

        try:
            self._server = _Server(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UserError(
                f"Port {port} of 127.0.0.1 is not available ({error.strerror}): use another."
            ) from error
        Handler.url = self.url
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        """The port of the server."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """The URL of the server, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def catalogue_url(self) -> str:
        """The URL of products.csv."""
        return f"{self.url}/products.csv"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    url: str
    protocol_version = "HTTP/1.1"
    timeout = 30
    # Headers and body in one packet: with Nagle's algorithm two small writes can take 40 ms.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name of the base class
        """Log nothing, because thousands of pictures are fetched."""

    def _answer(self, with_body: bool) -> None:
        data = self._read()
        if data is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        path = urlsplit(self.path).path
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        if path == "/products.csv":
            data = data.replace(PLACEHOLDER.encode(), self.url.encode())
        if self.headers.get("If-None-Match") == tag:
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.send_header("ETag", tag)
            self.end_headers()
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _content_type(path, data))
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", tag)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def _read(self) -> bytes | None:
        """Return the stored bytes of the requested file; None if it is not in the folder."""
        name = unquote(urlsplit(self.path).path).lstrip("/")
        try:
            path = (self.folder / name).resolve()
            return path.read_bytes() if path.is_relative_to(self.folder) and path.is_file() else None
        except (OSError, ValueError):
            return None


def _content_type(path: str, data: bytes) -> str:
    """Return the type of the bytes, regardless of the name: a web page in place of a picture is text/html."""
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    return _SUFFIX.get(Path(path).suffix, "application/octet-stream")

import csv
import hashlib
import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from fovea.errors import UserError
from sample.catalogue import PLACEHOLDER, write_catalogue
from sample.server import CatalogueServer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("served")
    (parent / "secret.txt").write_text("not yours")
    return write_catalogue(parent / "catalogue", 40).folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[CatalogueServer]:
    with CatalogueServer(folder) as running:
        yield running


def test_every_url_of_the_served_csv_answers_as_the_side_file_says(folder: Path, server: CatalogueServer):
    answer = httpx.get(server.catalogue_url)
    assert answer.headers["content-type"].startswith("text/csv")
    assert PLACEHOLDER not in answer.text
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    flaws = {flaw["name"]: flaw["rows"] for flaw in json.loads((folder / "flaws.json").read_text())["flaws"]}
    with httpx.Client() as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: client.get(row["imageurl"]), rows))
    for index, picture in enumerate(answers):
        if index in flaws["dead_link"]:
            assert picture.status_code == 404
        elif index in flaws["html_instead_of_picture"]:
            assert (picture.status_code, picture.headers["content-type"]) == (200, "text/html")
        else:
            kind = "image/png" if index in flaws["alpha"] else "image/jpeg"
            assert (picture.status_code, picture.headers["content-type"]) == (200, kind)
            stored = folder / "images" / Path(rows[index]["imageurl"]).name
            assert picture.content == stored.read_bytes()
            assert int(picture.headers["content-length"]) == len(picture.content)
            assert picture.headers["etag"] == f'"{hashlib.sha256(picture.content).hexdigest()}"'


def test_a_head_request_is_answered_without_the_body(server: CatalogueServer):
    head, full = httpx.head(server.catalogue_url), httpx.get(server.catalogue_url)
    assert head.content == b""
    assert head.headers["content-length"] == full.headers["content-length"] == str(len(full.content))
    assert head.headers["etag"] == full.headers["etag"]


def test_what_did_not_change_is_not_sent_again(server: CatalogueServer):
    tag = httpx.get(server.catalogue_url).headers["etag"]
    again = httpx.get(server.catalogue_url, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")


def test_the_catalogues_etag_does_not_depend_on_the_port(folder: Path, server: CatalogueServer):
    with CatalogueServer(folder) as other:
        assert other.port != server.port
        first, second = httpx.get(server.catalogue_url), httpx.get(other.catalogue_url)
    assert first.headers["etag"] == second.headers["etag"]
    assert first.text.replace(server.url, other.url) == second.text


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/images/..%2f..%2fsecret.txt",
        "//etc/passwd",
        "/images",
        "/%00",
    ],
)
def test_nothing_outside_the_folder_is_served(server: CatalogueServer, path: str):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"not yours" not in answer


def test_it_ends_with_its_block_and_its_port_is_free_again(folder: Path):
    with CatalogueServer(folder) as server:
        port = server.port
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/products.csv")
    with CatalogueServer(folder, port) as again:
        assert httpx.get(again.catalogue_url).status_code == 200


def test_a_taken_port_and_a_folder_without_catalogue_are_errors_that_help(folder: Path, tmp_path: Path):
    with CatalogueServer(folder) as server, pytest.raises(UserError, match=f"Port {server.port}"):
        CatalogueServer(folder, server.port)
    with pytest.raises(UserError, match="fovea sample-data"):
        CatalogueServer(tmp_path)

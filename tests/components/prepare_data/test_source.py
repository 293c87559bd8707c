"""Tables and pictures, from disk, S3 and HTTP."""

import asyncio
import functools
import io
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from components.prepare_data.pictures import Spool, collect_pictures
from components.prepare_data.source import PictureReader, open_table
from fovea.errors import UserError
from fovea.fetch import Fetcher, FetchError, FetchLimits
from fovea.pictures import PictureLimits
from fovea.platform import FetchProfile
from fovea.storage import Storage

LOOPBACK = FetchProfile.model_validate({"allowed_networks": ["127.0.0.0/8"]})
TABLE = "id,name\n1,one\n2,two\n"


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...

    def do_GET(self) -> None:
        if self.path == "/feed":
            self.send_response(302)
            self.send_header("Location", "/deep/table.csv")
            self.end_headers()
        else:
            super().do_GET()


@functools.cache
def storage() -> Storage:
    """One client for all tests: making one takes longer than most of them, and the server stays the same."""
    return Storage()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    deep = tmp_path / "served" / "deep"
    (deep / "images").mkdir(parents=True)
    (deep / "table.csv").write_text(TABLE)
    (deep / "images" / "1.jpg").write_bytes(b"one")
    (tmp_path / "served" / "secret.jpg").write_bytes(b"secret")
    return tmp_path / "served"


@pytest.fixture
def site(folder: Path) -> Iterator[str]:
    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def bucket(s3: str, folder: Path) -> str:
    storage().upload_folder(folder, f"{s3}/feeds/")
    return f"{s3}/feeds"


def rows(text: bytes | str, tmp_path: Path, columns: list[str]) -> list[dict[str, str] | None]:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with open_table(str(path), FetchProfile(), storage=None) as table:  # type: ignore[arg-type]
        return list(table.rows(columns))


def read(source: str, address: str, storage: Storage | None = None) -> bytes:
    async def run() -> bytes:
        async with Fetcher(LOOPBACK, FetchLimits(attempts=1, max_bytes=1000)) as fetcher:
            return await PictureReader(table, fetcher, storage, 1000).read(address)  # type: ignore[arg-type]

    with open_table(source, LOOPBACK, storage) as table:  # type: ignore[arg-type]
        return asyncio.run(run())


def reason(*args, **kwargs) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(FetchError) as caught:
        read(*args, **kwargs)
    return caught.value.reason


def test_the_same_table_has_the_same_digest_wherever_it_lies(folder: Path, site: str, bucket: str) -> None:
    sources = [
        str(folder / "deep/table.csv"),
        f"{site}/deep/table.csv",
        f"{site}/feed",
        f"{bucket}/deep/table.csv",
    ]
    digests = set()
    for source in sources:
        with open_table(source, LOOPBACK, storage()) as table:
            digests.add(table.digest)
            assert list(table.rows(["name"])) == [{"name": "one"}, {"name": "two"}]
    assert len(digests) == 1


def test_values_stay_text(tmp_path: Path) -> None:
    text = '\ufeffid,other,name\n0080401,x,"two\nlines, and ""quotes"""\n,x,NULL\n'
    assert rows(text, tmp_path, ["id", "name"]) == [
        {"id": "0080401", "name": 'two\nlines, and "quotes"'},
        {"id": "", "name": "NULL"},
    ]


def test_lines_of_another_length_are_told(tmp_path: Path) -> None:
    assert rows("id,name\n1,one\n2\n3,three,3\n4,four\n", tmp_path, ["id"]) == [
        {"id": "1"},
        {"id": "4"},
        None,
        None,
    ]


def test_a_column_may_be_asked_for_in_any_order_and_long_tables_come_in_batches(tmp_path: Path) -> None:
    text = "id,name\n" + "".join(f"{number},{'x' * 1000}\n" for number in range(9000))
    found = rows(text, tmp_path, ["name", "id"])
    assert [row["id"] for row in found if row] == [str(number) for number in range(9000)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,title\n1,x\n", r"no column name; there are id, title"),
        ("", "no column"),
        (b"id,name\n1,caf\xe9\n", "UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "UTF-8"),
        ("id,name\n1,2\n3,4\n5\0,6\n", None),
    ],
)
def test_what_is_no_such_table(text: bytes | str, message: str | None, tmp_path: Path) -> None:
    if message is None:
        assert len(rows(text, tmp_path, ["id", "name"])) == 3
        return
    with pytest.raises(UserError, match=message) as caught:
        rows(text, tmp_path, ["id", "name"])
    assert "\n" not in str(caught.value)


def test_a_source_that_is_not_there(tmp_path: Path, site: str, s3: str) -> None:
    for source in (
        str(tmp_path / "no.csv"),
        str(tmp_path),
        f"{site}/no.csv",
        f"{s3}/no.csv",
        "http://[::1/x",
    ):
        with pytest.raises(UserError) as caught, open_table(source, LOOPBACK, storage()):
            pass
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="fetch profile"), open_table(site, FetchProfile(), storage()):
        pass


def test_pictures_beside_the_table(folder: Path, site: str, bucket: str) -> None:
    for base in (str(folder), site, bucket):
        assert read(f"{base}/deep/table.csv", "images/1.jpg", storage()) == b"one"
    assert read(f"{site}/feed", "images/1.jpg") == b"one"
    assert read(f"{site}/feed", "/secret.jpg") == b"secret"


def test_pictures_elsewhere(folder: Path, site: str, bucket: str) -> None:
    for base in (str(folder), bucket):
        assert read(f"{base}/deep/table.csv", f"{site}/deep/images/1.jpg", storage()) == b"one"
        assert read(f"{base}/deep/table.csv", f"{bucket}/deep/images/1.jpg", storage()) == b"one"


def test_no_table_leads_out_of_its_folder(folder: Path, bucket: str) -> None:
    (folder / "deep" / "link.jpg").symlink_to(folder / "secret.jpg")
    local = str(folder / "deep/table.csv")
    for address in ("../secret.jpg", str(folder / "secret.jpg"), "images/../../secret.jpg", "link.jpg"):
        assert reason(local, address) == "forbidden_address"
    for address in ("../secret.jpg", "/secret.jpg", "../deeper/1.jpg"):
        assert reason(f"{bucket}/deep/table.csv", address, storage()) == "forbidden_address"


def test_a_table_from_the_web_leads_to_the_web_alone(site: str, folder: Path, bucket: str) -> None:
    source = f"{site}/deep/table.csv"
    assert reason(source, f"{bucket}/deep/images/1.jpg", storage()) == "invalid_url"
    assert reason(source, f"file://{folder}/secret.jpg") == "invalid_url"
    assert reason(source, str(folder / "secret.jpg")) == "not_found"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("images/no.jpg", "not_found"),
        ("images", "not_found"),
        ("file:///etc/passwd", "invalid_url"),
        ("data:image/png;base64,AAAA", "invalid_url"),
        ("http://[::1/x", "invalid_url"),
        ("large.jpg", "too_large"),
    ],
)
def test_pictures_that_are_not_to_be_had(address: str, expected: str, folder: Path) -> None:
    (folder / "deep" / "large.jpg").write_bytes(b"x" * 1001)
    assert reason(str(folder / "deep/table.csv"), address) == expected


def test_s3_that_refuses_is_an_error_and_no_missing_picture(bucket: str) -> None:
    refused = Storage(boto3.client("s3", aws_access_key_id="fovea", aws_secret_access_key="wrong"))  # noqa: S106

    async def run() -> None:
        async with Fetcher(LOOPBACK) as fetcher:
            reader = PictureReader(table, fetcher, refused, 1000)
            await collect_pictures(
                ["images/1.jpg", "images/2.jpg"],
                reader,
                Spool(io.BytesIO()),
                limits=PictureLimits(),
                longest_side=64,
                concurrency=2,
                progress=lambda done, total: None,
            )

    source = f"{bucket}/deep/table.csv"
    with open_table(source, LOOPBACK, storage()) as table, pytest.raises(UserError, match="refuses"):
        asyncio.run(run())
    assert reason(f"{bucket}/deep/table.csv", "images/2.jpg", storage()) == "not_found"

"""Tables and pictures, from disk, S3 and HTTP."""

import functools
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.prepare_data.sources.source import PicturePlaces, open_source
from components.prepare_data.sources.tables import SourceRow
from fovea.errors import UserError
from fovea.fetch.client import FetchError
from fovea.fetch.profiles import FetchProfile
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


def rows(text: bytes | str, tmp_path: Path, columns: list[str]) -> list[dict[str, object] | str]:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [row.values if row.malformed is None else row.malformed for row in read_rows(str(path), columns)]


def read_rows(source: str, columns: list[str], image_column: str = "") -> list[SourceRow]:
    with open_source(source, LOOPBACK, storage=None) as found:  # type: ignore[arg-type]
        return list(found.rows(columns, image_column or columns[0]))


def read(source: str, address: str, storage: Storage | None = None) -> bytes | str:
    """Return a picture's bytes, or the URL where they are to be fetched."""
    with open_source(source, LOOPBACK, storage) as table:  # type: ignore[arg-type]
        places = PicturePlaces(table.location, storage, 1000)  # type: ignore[arg-type]
        url = places.url(address)
        return places.read(address) if url is None else url


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
        str(folder / "deep"),
        f"{folder}/*/table.*",
        f"{bucket}/deep/",
        f"{bucket}/deep/*.csv",
    ]
    digests = set()
    for source in sources:
        with open_source(source, LOOPBACK, storage()) as table:
            digests.add(table.digest)
            assert [row.values for row in table.rows(["name"], "name")] == [{"name": "one"}, {"name": "two"}]
    assert len(digests) == 1


def test_values_stay_text(tmp_path: Path) -> None:
    text = '\ufeffid,other,name\n0080401,x,"two\nlines, and ""quotes"""\n,x,NULL\n'
    assert rows(text, tmp_path, ["id", "name"]) == [
        {"id": "0080401", "name": 'two\nlines, and "quotes"'},
        {"id": "", "name": "NULL"},
    ]


def test_lines_of_another_length_are_told_where_they_stand(tmp_path: Path) -> None:
    assert rows("id,name\n1,one\n2\n3,three,3\n4,four\n5\n", tmp_path, ["id"]) == [
        {"id": "1"},
        "2",
        "3,three,3",
        {"id": "4"},
        "5",
    ]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_any_usual_delimiter(mark: str, tmp_path: Path) -> None:
    text = f'id{mark}name\n1{mark}"one{mark}, ; and two"\n'
    assert rows(text, tmp_path, ["name"]) == [{"name": f"one{mark}, ; and two"}]


def test_a_column_may_be_asked_for_in_any_order_and_long_tables_come_in_batches(tmp_path: Path) -> None:
    text = "id,name\n" + "".join(f"{number},{'x' * 1000}\n" for number in range(9000))
    found = rows(text, tmp_path, ["name", "id"])
    assert [row["id"] for row in found if isinstance(row, dict)] == [str(number) for number in range(9000)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,title\n1,x\n", r"no column name; there are id, title"),
        ("", "no column"),
        ('{"id": 1, "title": "x"}\n', r"no column name; there are id, title"),
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


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"id": 80401, "price": 1390.50, "name": "one", "more": [1]}',
        '{"id": "0080401", "price": null, "name": {"a": "é"}}',
        "no json",
        '["a list"]',
        "",
        '{"id": true, "price": NaN}',
    ]
    found = rows("\n".join(lines), tmp_path, ["id", "price", "name"])
    assert found == [
        {"id": "80401", "price": Decimal("1390.50"), "name": "one"},
        {"id": "0080401", "price": "", "name": '{"a": "é"}'},
        "no json",
        '["a list"]',
        {"id": "true", "price": "", "name": ""},
    ]


def test_parquet_of_any_types(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "id": pyarrow.array([80401, None], pyarrow.int64()),
            "price": pyarrow.array([12.345, float("nan")]),
            "kind": pyarrow.array(["a", "b"]).dictionary_encode(),
            "image": pyarrow.array(
                [{"bytes": b"one", "path": "1.jpg"}, {"bytes": None, "path": "images/2.jpg"}],
                pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
            ),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "table")
    assert read_rows(str(tmp_path / "table"), ["id", "price", "kind", "image"], "image") == [
        SourceRow({"id": "80401", "price": Decimal("12.345"), "kind": "a", "image": ""}, b"one"),
        SourceRow({"id": "", "price": "", "kind": "b", "image": "images/2.jpg"}),
    ]
    plain = pyarrow.table({"image": pyarrow.array([b"one", b""]), "id": [1, 2]})
    pyarrow.parquet.write_table(plain, tmp_path / "plain.parquet")
    assert [row.picture for row in read_rows(str(tmp_path / "plain.parquet"), ["image"])] == [b"one", b""]
    with pytest.raises(UserError, match="no column price; there are image, id"):
        read_rows(str(tmp_path / "plain.parquet"), ["image", "price"])
    (tmp_path / "broken").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_rows(str(tmp_path / "broken"), ["image"])
    assert "\n" not in str(caught.value)


def test_several_files_are_one_table(tmp_path: Path, s3: str) -> None:
    """By name, whatever they are, and addresses beside each one stay apart."""
    folder = tmp_path / "feed"
    for name in ("a", "b/c"):
        (folder / name / "images").mkdir(parents=True)
        (folder / name / "images" / "1.jpg").write_bytes(name.encode())
    (folder / "a" / "table.csv").write_text("name,image\none,images/1.jpg\n")
    lines = [{"name": "two", "image": "images/1.jpg"}, {"name": "three", "image": "https://shop.test/3.jpg"}]
    (folder / "b/c" / "table.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "notes.txt").write_text("no table")
    storage().upload_folder(folder, f"{s3}/feed/")
    expected = [
        ("one", "a/images/1.jpg"),
        ("two", "b/c/images/1.jpg"),
        ("three", "https://shop.test/3.jpg"),
    ]
    digests = set()
    for source in (str(folder), f"{folder}/**/table.*", f"{s3}/feed/", f"{s3}/feed", f"{s3}/feed/**/t*.*"):
        with open_source(source, LOOPBACK, storage()) as found:
            digests.add(found.digest)
            read_ = list(found.rows(["name", "image"], "image"))
            assert [(row.values["name"], row.values["image"]) for row in read_] == expected
            places = PicturePlaces(found.location, storage(), 1000)
            assert [places.read(address) for _, address in expected[:2]] == [b"a", b"b/c"]
            assert places.url(expected[2][1]) == expected[2][1]
    assert len(digests) == 1


def test_a_folder_or_pattern_without_tables(tmp_path: Path, s3: str) -> None:
    for source in (str(tmp_path), f"{tmp_path}/*.csv", f"{s3}/none/", f"{s3}/*.csv", "ftp://host/table.csv"):
        with pytest.raises(UserError, match=r"no such table|cannot be read from ftp"):
            read_rows_of(source)


def read_rows_of(source: str) -> None:
    with open_source(source, LOOPBACK, storage()) as found:
        list(found.rows(["id"], "id"))


def test_a_source_that_is_not_there(tmp_path: Path, site: str, s3: str) -> None:
    for source in (
        str(tmp_path / "no.csv"),
        f"{site}/no.csv",
        f"{s3}/no.csv",
        "http://[::1/x",
    ):
        with pytest.raises(UserError) as caught, open_source(source, LOOPBACK, storage()):
            pass
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="fetch profile"), open_source(site, FetchProfile(), storage()):
        pass


def test_pictures_beside_the_table(folder: Path, site: str, bucket: str) -> None:
    for base in (str(folder), bucket):
        assert read(f"{base}/deep/table.csv", "images/1.jpg", storage()) == b"one"
    assert read(f"{site}/deep/table.csv", "images/1.jpg") == f"{site}/deep/images/1.jpg"
    assert read(f"{site}/feed", "images/1.jpg") == f"{site}/deep/images/1.jpg"
    assert read(f"{site}/feed", "/secret.jpg") == f"{site}/secret.jpg"


def test_pictures_elsewhere(folder: Path, site: str, bucket: str) -> None:
    for base in (str(folder), bucket):
        elsewhere = f"{site}/deep/images/1.jpg"
        assert read(f"{base}/deep/table.csv", elsewhere, storage()) == elsewhere
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
    assert reason(source, "hf://datasets/owner/name@1/secret.jpg") == "invalid_url"
    assert reason(source, "row:0") == "invalid_url"
    assert str(read(source, str(folder / "secret.jpg"))).startswith(site)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("images/no.jpg", "not_found"),
        ("images", "not_found"),
        ("file:///etc/passwd", "invalid_url"),
        ("data:image/png;base64,AAAA", "invalid_url"),
        ("http://[::1/x", "invalid_url"),
        ("large.jpg", "too_large"),
        ("x" * 300 + ".jpg", "invalid_url"),
        ("a\0b.jpg", "invalid_url"),
        ("\ud83d.jpg", "invalid_url"),
        ("loop.jpg", "invalid_url"),
        ("http://xn--/a.jpg", "invalid_url"),
        ("http://93.184.216.34:99999/a.jpg", "invalid_url"),
        ("s3:a.jpg", "invalid_url"),
        ("s3://a.jpg", "invalid_url"),
        ("s3://shop", "invalid_url"),
        ("s3://shop/", "invalid_url"),
        ("s3://a b/c.jpg", "invalid_url"),
        ("S3://shop/" + "x" * 1025, "invalid_url"),
    ],
)
def test_pictures_that_are_not_to_be_had(address: str, expected: str, folder: Path) -> None:
    (folder / "deep" / "large.jpg").write_bytes(b"x" * 1001)
    (folder / "deep" / "loop.jpg").symlink_to("loop.jpg")
    assert reason(str(folder / "deep/table.csv"), address) == expected


def test_s3_that_refuses_is_an_error_and_no_missing_picture(bucket: str) -> None:
    refused = Storage(boto3.client("s3", aws_access_key_id="fovea", aws_secret_access_key="wrong"))  # noqa: S106
    places = PicturePlaces(f"{bucket}/deep/table.csv", refused, 1000)
    with pytest.raises(UserError, match="refuses"):
        places.read("images/1.jpg")
    assert reason(f"{bucket}/deep/table.csv", "images/2.jpg", storage()) == "not_found"


def test_the_scheme_of_s3_has_no_case(folder: Path, bucket: str) -> None:
    upper = "S3" + bucket[2:]
    assert read(str(folder / "deep/table.csv"), f"{upper}/deep/images/1.jpg", storage()) == b"one"
    assert read(f"{upper}/deep/table.csv", "images/1.jpg", storage()) == b"one"
    assert len(read_rows_from_s3(f"{upper}/deep/*.csv")) == len(read_rows_from_s3(f"{bucket}/deep/*.csv"))


def read_rows_from_s3(source: str) -> list[SourceRow]:
    with open_source(source, LOOPBACK, storage()) as found:
        return list(found.rows(["id"], "id"))


class Empty:
    """A bucket that has nothing."""

    def exists(self, uri: str) -> bool:
        assert uri.lower().startswith("s3://")
        return False


@given(
    base=st.sampled_from(["/nowhere/table.csv", "s3://shop/feed/table.csv", "http://shop.test/table.csv"]),
    start=st.sampled_from(["", "s3://", "S3:", "http://", "../", "hf://"]),
    text=st.text(st.characters(), max_size=300),
)
def test_any_text_leads_somewhere_or_nowhere(base: str, start: str, text: str) -> None:
    places = PicturePlaces(base, Empty(), 1000)  # type: ignore[arg-type]
    with suppress(FetchError):
        if places.url(start + text) is None:
            places.read(start + text)

"""The picture store, on a real S3 server and a web server whose pictures change."""

import functools
import hashlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import boto3
import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.prepare_data import picture_store, pictures
from components.prepare_data.picture_store import PictureStore, Stored, group_reads, open_store
from components.prepare_data.pictures import Prepared, Unusable, Wanted, stream_pictures
from fovea.errors import UserError
from fovea.fetch.client import FetchLimits, Version
from fovea.fetch.profiles import FetchProfile
from fovea.storage import Storage
from tests.feed_server import FeedServer, Request, says

LOOPBACK = FetchProfile.model_validate({"allowed_networks": ["127.0.0.0/8"]})
AT_ONCE = timedelta(0)
DAY = timedelta(hours=24)

Found = dict[str, Prepared | Unusable]
Run = Callable[..., Found]


@functools.cache
def storage() -> Storage:
    return Storage()


@functools.cache
def jpeg(number: int) -> bytes:
    colours = np.random.default_rng(number).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((80, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


class Shop:
    """A web shop: the pictures by path, which may change, and what was asked of it."""

    def __init__(self) -> None:
        self.pictures = {f"/{number}.jpg": jpeg(number) for number in range(20)}
        self.sent: list[str] = []
        self.unchanged: list[str] = []
        self.failing = ""

    async def answer(self, request: Request) -> None:
        picture = self.pictures.get(request.path)
        if self.failing:
            await request.send(status=self.failing)
        elif picture is None:
            await request.send(status="404 Not Found")
        elif request.headers.get("if-none-match") == (tag := f'"{hashlib.md5(picture).hexdigest()}"'):  # noqa: S324
            self.unchanged.append(request.path)
            await request.send(status="304 Not Modified")
        else:
            self.sent.append(request.path)
            await request.send(picture, ETag=tag)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def site(shop: Shop) -> Iterator[str]:
    with FeedServer({}, otherwise=shop.answer) as server:
        yield server.url


class Web:
    def url(self, address: str) -> str | None:
        return address

    def read(self, address: str) -> bytes:
        raise AssertionError


def collect(store: PictureStore | None, site: str, names: list[str] | None = None) -> Found:
    names = names or [f"/{number}.jpg" for number in range(20)]
    found = stream_pictures(
        [Wanted(site + name) for name in names],
        Web(),
        profile=LOOPBACK,
        store=store,
        fingerprint=lambda image: b"",
        longest_side=64,
    )
    return {one.address.removeprefix(site): one for one in found}


@pytest.fixture
def run(s3: str, site: str, tmp_path: Path) -> Run:
    """A whole run: ``run(names, recheck_after=…)`` returns what was found, by path."""

    def run(
        names: list[str] | None = None, recheck_after: timedelta = DAY, profile: str = "default"
    ) -> Found:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        with open_store(storage(), s3, profile, folder, recheck_after) as store:
            return collect(store, site, names)

    return run


def objects(s3: str, kind: str) -> list[str]:
    return list(storage().list(f"{s3}/pictures/default/{kind}/"))


def test_what_is_there_is_not_fetched_again(run: Run, shop: Shop, s3: str, site: str) -> None:
    first = run()
    assert len(shop.sent) == 20
    shop.sent.clear()
    assert run() == first == collect(None, site)
    assert len(shop.sent) == 20  # by the run without a store
    shop.sent.clear()
    shop.pictures |= {"/new.jpg": jpeg(50)}
    assert run([*first, "/new.jpg"]).keys() - first.keys() == {"/new.jpg"}
    assert shop.sent == ["/new.jpg"]
    assert not shop.unchanged
    assert len(objects(s3, "packs")) == len(objects(s3, "index")) == 2


def test_later_servers_are_asked_what_has_changed(run: Run, shop: Shop, s3: str) -> None:
    first = run()
    shop.sent.clear()
    shop.pictures["/3.jpg"] = jpeg(33)
    second = run(recheck_after=AT_ONCE)
    assert shop.sent == ["/3.jpg"]
    assert len(shop.unchanged) == 19
    assert {name for name in first if first[name] != second[name]} == {"/3.jpg"}
    # Their answers count from then on.
    shop.sent.clear()
    shop.unchanged.clear()
    assert run() == second
    assert not shop.sent
    assert not shop.unchanged


@pytest.mark.parametrize(("status", "kept"), [("503 Service Unavailable", True), ("403 Forbidden", False)])
def test_a_server_in_trouble_takes_nothing_back(
    run: Run,
    shop: Shop,
    status: str,
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "FetchLimits", functools.partial(FetchLimits, attempts=1))
    first = run()
    shop.failing = status
    later = run(recheck_after=AT_ONCE)
    assert (later == first) is kept
    if not kept:
        assert {one.reason for one in later.values()} == {"refused"}


def test_what_cannot_be_used_is_not_kept(run: Run, shop: Shop, s3: str) -> None:
    shop.pictures["/1.jpg"] = b"<html>come back later</html>"
    assert run()["/1.jpg"].reason == "not_a_picture"
    shop.sent.clear()
    shop.pictures["/1.jpg"] = jpeg(1)
    assert isinstance(run()["/1.jpg"], Prepared)
    assert shop.sent == ["/1.jpg"]


def test_the_same_file_at_two_addresses_lies_there_once(run: Run, shop: Shop, s3: str) -> None:
    shop.pictures = dict.fromkeys(shop.pictures, jpeg(1))
    run()
    shop.pictures["/late.jpg"] = jpeg(1)
    run(["/late.jpg"])
    (pack,) = objects(s3, "packs")
    assert len(storage().read_bytes(pack)) == len(jpeg(1))
    shop.sent.clear()
    assert isinstance(run(["/late.jpg"])["/late.jpg"], Prepared)
    assert not shop.sent


@pytest.mark.parametrize("harm", ["missing", "changed", "short"])
def test_a_damaged_pack_is_noticed_and_replaced(
    run: Run,
    shop: Shop,
    s3: str,
    harm: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = run()
    (pack,) = objects(s3, "packs")
    data = storage().read_bytes(pack)
    if harm == "missing":
        bucket, _, key = pack.removeprefix("s3://").partition("/")
        boto3.client("s3").delete_object(Bucket=bucket, Key=key)
    else:
        storage().write_bytes(pack, data[:-5] if harm == "short" else data[:100] + b"?" + data[101:])
    shop.sent.clear()
    with caplog.at_level(logging.WARNING):
        assert run() == first
    assert 0 < len(shop.sent) <= 20
    assert len(caplog.records) == 1
    shop.sent.clear()
    caplog.clear()
    assert run() == first
    assert not shop.sent
    assert not caplog.records


def fill(run: Run, shop: Shop, runs: int) -> list[str]:
    """Let a number of runs each add a picture, and so an index object; return the pictures."""
    names = [f"/new-{number}.jpg" for number in range(runs)]
    for number, name in enumerate(names):
        shop.pictures[name] = jpeg(100 + number)
        run([name])
    shop.sent.clear()
    return names


def test_many_index_objects_become_few(
    run: Run, shop: Shop, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = fill(run, shop, 5)
    shop.pictures["/new-0.jpg"] = jpeg(99)
    run(["/new-0.jpg"], recheck_after=AT_ONCE)
    assert len(objects(s3, "index")) == 6
    monkeypatch.setattr(picture_store, "_MERGE_FROM", 5)
    monkeypatch.setattr(picture_store, "_MERGED_ROWS", 4)
    for _ in range(2):
        found = run(names)
        assert len(objects(s3, "index")) == 2
    assert found["/new-0.jpg"].digest == hashlib.sha256(jpeg(99)).hexdigest()
    assert shop.sent == ["/new-0.jpg"]


def test_an_index_object_that_another_run_merges_meanwhile_is_not_missed(
    run: Run, shop: Shop, s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = fill(run, shop, 5)
    listed = Storage.list

    def merged_once_listed(self: Storage, uri: str) -> list[str]:
        found = list(listed(self, uri))
        if "/index/" in uri and len(found) == 5:
            monkeypatch.setattr(Storage, "list", listed)
            monkeypatch.setattr(picture_store, "_MERGE_FROM", 5)
            run(names[:1])
        return found

    monkeypatch.setattr(Storage, "list", merged_once_listed)
    run(names)
    assert len(objects(s3, "index")) == 1
    assert not shop.sent


def test_each_profile_has_a_store_of_its_own(run: Run, shop: Shop) -> None:
    run(profile="intranet")
    shop.sent.clear()
    run()
    assert len(shop.sent) == 20


def test_what_was_fetched_before_a_failure_is_kept(
    s3: str, site: str, shop: Shop, run: Run, tmp_path: Path
) -> None:
    def fails_after_twelve() -> None:
        with open_store(storage(), s3, "default", tmp_path) as store:
            collect(store, site, [f"/{number}.jpg" for number in range(12)])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_after_twelve()
    shop.sent.clear()
    run()
    assert len(shop.sent) == 8


def test_packs_are_there_once_they_are_written(
    s3: str,
    site: str,
    shop: Shop,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if killed: the store is never closed, and what it had in memory is lost."""
    monkeypatch.setattr(picture_store, "_PACK_BYTES", 3 * len(jpeg(0)))
    store = PictureStore(storage(), f"{s3}/pictures/default", tmp_path, DAY)
    collect(store, site)
    assert store._upload
    store._upload.result()
    assert len(objects(s3, "index")) >= 5
    kept = sum(
        pyarrow.parquet.read_table(io.BytesIO(storage().read_bytes(uri))).num_rows
        for uri in objects(s3, "index")
    )
    shop.sent.clear()
    run()
    assert len(shop.sent) == 20 - kept
    # An upload that was cut short leaves a pack without an index, which nobody misses.
    storage().write_bytes(f"{s3}/pictures/default/packs/half.bin", b"half")
    shop.sent.clear()
    run()
    assert not shop.sent


def test_a_pack_does_not_wait_for_more(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PictureStore(storage(), f"{s3}/pictures/default", tmp_path, DAY)
    store.add("http://a/1", Version("http://a/1"), "0" * 64, b"one")
    store.flush_if_due()
    assert not store._upload
    monkeypatch.setattr(picture_store, "_PACK_SECONDS", 0)
    store.flush_if_due()
    assert store._upload
    store.close()
    assert len(objects(s3, "index")) == 1


def test_several_runs_at_once(run: Run, shop: Shop, s3: str) -> None:
    with ThreadPoolExecutor(3) as threads:
        results = [future.result() for future in [threads.submit(run) for _ in range(3)]]
    assert results[0] == results[1] == results[2]
    shop.sent.clear()
    assert run() == results[0]
    assert not shop.sent


def test_pictures_that_moved_are_asked_for_where_they_are(s3: str, tmp_path: Path) -> None:
    """The validators belong to the place they came from, and go to no other."""
    old, new = says(jpeg(1), ETag='"same"'), says(jpeg(2), ETag='"same"')
    with FeedServer({"/old": old, "/new": new, "/a": says(b"", "302 Found", Location="/old")}) as server:
        for target, expected in (("/old", jpeg(1)), ("/old", jpeg(1)), ("/new", jpeg(2))):
            server.answers["/a"] = says(b"", "302 Found", Location=target)
            folder = tmp_path / str(server.asked.total())
            folder.mkdir()
            with open_store(storage(), s3, "default", folder, AT_ONCE) as store:
                (one,) = collect(store, server.url, ["/a"]).values()
            assert isinstance(one, Prepared)
            assert one.digest == hashlib.sha256(expected).hexdigest()
        assert "if-none-match" not in server.headers["/a"]
        assert server.headers["/old"]["if-none-match"] == '"same"'
        assert "if-none-match" not in server.headers["/new"]


def test_errors_of_s3_are_told(s3: str, site: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="no such bucket"),
        open_store(storage(), "s3://not-there-at-all", "default", tmp_path),
    ):
        pass
    storage().write_bytes(f"{s3}/pictures/default/index/x.parquet", b"junk")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"x\.parquet"), open_store(storage(), s3, "default", tmp_path / "b"):
        pass


def test_s3_that_refuses_packs_ends_the_run(
    s3: str, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = Storage()
    monkeypatch.setattr(
        refusing, "write_bytes", lambda *a, **k: (_ for _ in ()).throw(UserError("S3 refuses access"))
    )
    with pytest.raises(UserError, match="refuses"), open_store(refusing, s3, "default", tmp_path) as store:
        collect(store, site)


STORED = st.builds(
    Stored,
    url=st.just("u"),
    found_at=st.just("u"),
    etag=st.just(""),
    last_modified=st.just(""),
    digest=st.just("0"),
    pack=st.sampled_from("ab"),
    offset=st.integers(0, 40 << 20),
    length=st.integers(1, 20 << 20),
    checked_at=st.just(0.0),
)


@given(st.lists(STORED, max_size=40))
def test_reads_are_grouped_by_pack_and_never_large(wanted: list[Stored]) -> None:
    groups = group_reads(wanted)
    assert sorted(place for group in groups for place in group) == list(range(len(wanted)))
    for group in groups:
        members = [wanted[place] for place in group]
        assert len({one.pack for one in members}) == 1
        assert members[0].offset == min(one.offset for one in members)
        span = max(one.offset + one.length for one in members) - members[0].offset
        assert len(members) == 1 or span <= 28 << 20


def test_neighbours_are_read_in_one_go() -> None:
    near = [Stored("u", "u", "", "", "0", "a", 1000 * number, 1000, 0.0) for number in range(100)]
    assert group_reads(near[::-1]) == [list(range(99, -1, -1))]

"""Many pictures at once, from a server as feeds have them."""

import asyncio
import functools
import io
import itertools
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from components.prepare_data import pictures
from components.prepare_data.picture_store import PictureStore
from components.prepare_data.pictures import Prepared, Unusable, Wanted, stream_pictures
from fovea.errors import UserError
from fovea.fetch.client import FetchError, FetchLimits
from fovea.fetch.profiles import FetchProfile
from fovea.images import PictureLimits
from tests.components.prepare_data.hostile_feed import hostile_feed, jpeg
from tests.feed_server import FeedServer, Request, says

FEED = FetchProfile.model_validate({"allowed_networks": ["127.0.0.2/32"]})
LIMITS = PictureLimits(max_bytes=200_000, max_pixels=4_000_000)


class Web:
    """Addresses that are URLs; those of files are looked up in a dictionary."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self._files = files or {}

    def url(self, address: str) -> str | None:
        if address.startswith("ftp:"):
            raise FetchError("invalid_url", address, "not an http or https address")
        return address if address.startswith("http") else None

    def read(self, address: str) -> bytes:
        if address == "refused":
            raise UserError("S3 refuses access")
        if address not in self._files:
            raise FetchError("not_found", address, "there is no such file")
        return self._files[address]


def stream(
    wanted: Iterable[str | Wanted],
    *,
    places: Web | None = None,
    store: PictureStore | None = None,
    concurrency: int = 8,
) -> Iterator[Prepared | Unusable]:
    return stream_pictures(
        (Wanted(one) if isinstance(one, str) else one for one in wanted),
        places or Web(),
        profile=FEED,
        store=store,
        fingerprint=lambda image: bytes(image.resize((1, 1)).getpixel((0, 0))),  # type: ignore[arg-type]
        longest_side=64,
        limits=LIMITS,
        concurrency=concurrency,
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same attempts as ever, with short waits between them."""
    limits = functools.partial(FetchLimits, idle_seconds=2, max_wait_seconds=0.2)
    monkeypatch.setattr(pictures, "FetchLimits", limits)


def test_a_hostile_feed_is_told_about_and_nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile_feed(monkeypatch) as feed:
        expected = {**feed.reasons, "ftp://shop.test/x": "invalid_url"}
        found = {one.address: one for one in stream(expected)}
        assert not feed.inside.asked
    assert {a: one.reason if isinstance(one, Unusable) else "" for a, one in found.items()} == expected
    for one in found.values():
        if isinstance(one, Unusable):
            assert "\n" not in one.detail
            assert one.detail


def test_what_is_handed_over() -> None:
    wide = jpeg(7, (200, 100))
    with FeedServer({"/a": says(wide)}, "127.0.0.2") as feed:
        (one,) = stream([f"{feed.url}/a"])
    assert isinstance(one, Prepared)
    assert (one.width, one.height, one.original_width, one.original_height) == (64, 32, 200, 100)
    assert Image.open(io.BytesIO(one.jpeg)).size == (64, 32)
    assert len(one.digest) == 64
    assert len(one.fingerprint) == 3


def test_pictures_in_the_table_and_beside_it() -> None:
    found = {
        one.address: one
        for one in stream(
            [Wanted("row:1", jpeg(1)), "2.jpg", "no.jpg", Wanted("row:3", b"")],
            places=Web({"2.jpg": jpeg(2)}),
        )
    }
    assert isinstance(found["row:1"], Prepared)
    assert isinstance(found["2.jpg"], Prepared)
    assert [one.reason for one in found.values() if isinstance(one, Unusable)] in (
        ["not_found", "not_a_picture"],
        ["not_a_picture", "not_found"],
    )


def test_each_comes_once_and_only_so_many_are_asked_for_at_a_time() -> None:
    async def answer(request: Request) -> None:
        await asyncio.sleep(0.01)
        await request.send(jpeg(int(request.path[1:]) % 5))

    with FeedServer({}, "127.0.0.2", otherwise=answer) as feed:
        addresses = [f"{feed.url}/{number}" for number in range(200)]
        found = [one.address for one in stream(addresses, concurrency=6)]
        assert sorted(found) == sorted(addresses)
        assert feed.most_at_once == 6
        assert feed.connections <= 6


def test_the_source_is_read_a_little_ahead_and_in_the_callers_thread() -> None:
    threads = set()

    def endless_source() -> Iterator[Wanted]:
        for number in itertools.count():
            threads.add(threading.get_ident())
            yield Wanted(f"row:{number}", jpeg(number % 3))

    source = endless_source()
    with closing(stream(source)) as results:
        for _ in range(300):
            next(results)
    assert threads == {threading.get_ident()}
    assert int(next(source).address[4:]) < 500
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("fetch", "decode"))]


def test_no_usable_picture_at_all_is_an_error() -> None:
    with pytest.raises(UserError, match=r"none of the first 200 pictures can be used \(not_found 200\)"):
        list(stream(f"{number}.jpg" for number in range(1000)))
    assert len(list(stream(f"{number}.jpg" for number in range(199)))) == 199


@pytest.mark.parametrize("place", [0, 70])
def test_s3_that_refuses_ends_it(place: int) -> None:
    addresses = [f"{number}.jpg" for number in range(100)]
    addresses[place] = "refused"
    with pytest.raises(UserError, match="refuses"):
        list(stream(addresses))


def test_a_bug_in_the_fingerprint_is_not_swallowed(tmp_path: Path) -> None:
    def broken(image: Image.Image) -> bytes:
        raise ZeroDivisionError

    results = stream_pictures(
        [Wanted("row:1", jpeg(1))], Web(), profile=FEED, store=None, fingerprint=broken, longest_side=64
    )
    with pytest.raises(ZeroDivisionError):
        list(results)


def test_results_do_not_depend_on_chance() -> None:
    with FeedServer({}, "127.0.0.2", otherwise=says(jpeg(3, (300, 200)))) as feed:
        addresses = [f"{feed.url}/{number}" for number in range(40)]
        one, other = (sorted(stream(addresses, concurrency=n), key=lambda p: p.address) for n in (1, 16))
    assert one == other

"""Pictures that show the same are found, and pictures of other products are not."""

import io
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.prepare_data.near_duplicates import (
    FINGERPRINT_BYTES,
    cluster_pictures,
    fingerprint,
    look_alike,
)
from components.prepare_data.workspace import Workspace
from fovea.images import PictureLimits, decode_picture, normalise
from sample.drawing import random_look, render, seeded
from tests.components.prepare_data.workspaces import query

KINDS = ["tote bag", "coat", "shirt", "dress", "watch", "sunglasses", "belt", "trainers"]


def drawn(number: int, side: int = 300) -> Image.Image:
    rng = seeded(7, "near", number)
    return render(random_look(rng, [rng.choice(KINDS)], ["blue", "black", "white"]), side, side, rng)


def clusters(prints: dict[str, bytes]) -> tuple[list[set[str]], set[tuple[str, str, str]]]:
    found = defaultdict(set)
    with tempfile.TemporaryDirectory() as folder, Workspace(Path(folder)) as workspace:
        for number, (name, data) in enumerate(prints.items()):
            workspace.rows.add(number, {}, product=name, address=name, values={})
            workspace.pictures.add(
                name, digest=name, jpeg=b"", size=(1, 1), original_size=(1, 1), fingerprint=data
            )
        workspace.prints.collect()
        cluster_pictures(workspace.prints)
        for name, cluster in query(workspace, "SELECT digest, cluster FROM prints"):
            found[cluster].add(name)
        return list(found.values()), set(query(workspace, "SELECT * FROM links"))


def recompressed(picture: Image.Image, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, **options)  # type: ignore[arg-type]
    return decode_picture(buffer.getvalue(), PictureLimits())


@pytest.mark.parametrize("number", range(6))
def test_copies_of_a_picture_are_known_again(number: int) -> None:
    original = drawn(number, 600)
    copies = [
        recompressed(original, format="JPEG", quality=50),
        recompressed(original, format="WEBP", quality=60),
        recompressed(original, format="PNG"),
        normalise(original, 300),
        recompressed(original.resize((200, 200), Image.Resampling.BICUBIC), format="JPEG", quality=75),
    ]
    prints = {str(place): fingerprint(copy) for place, copy in enumerate([original, *copies])}
    assert {len(data) for data in prints.values()} == {FINGERPRINT_BYTES}
    found, links = clusters(prints)
    assert len(found) == 1
    assert len(links) == len(copies)


def test_products_that_resemble_each_other_are_not_chained() -> None:
    """Drawn alike, in three colours, on the same kind of background: none is taken for another."""
    prints = {str(number): fingerprint(drawn(number)) for number in range(120)}
    found, links = clusters(prints)
    assert len(found) == 120
    assert not links


def test_the_same_shape_in_another_colour_is_another_picture() -> None:
    picture = drawn(1)
    red, green, blue = picture.split()
    swapped = Image.merge("RGB", (blue, green, red))
    assert not look_alike(fingerprint(picture), fingerprint(swapped))


def test_what_shows_nothing_resembles_nothing() -> None:
    shades = {
        str(level): fingerprint(Image.new("RGB", (90, 60), (level, 3, 250))) for level in range(250, 256)
    }
    assert len(clusters(shades)[0]) == 6


def test_equal_fingerprints_are_told_apart_from_near_ones() -> None:
    picture = drawn(2)
    prints = {
        "a": fingerprint(picture),
        "b": fingerprint(picture.copy()),
        "c": fingerprint(normalise(picture, 120)),
    }
    found, links = clusters(prints)
    assert found == [{"a", "b", "c"}]
    assert {("a", "b", "same")} < links
    assert {kind for _, _, kind in links} == {"same", "near"}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 40)), max_size=24),
    st.integers(0, 9),
)
def test_every_pair_with_few_differing_bits_is_found(items: list[tuple[int, int, int]], seed: int) -> None:
    """And nothing else joins two pictures than pairs that look alike."""
    random = np.random.default_rng(seed)
    bases = random.integers(0, 256, (4, FINGERPRINT_BYTES), np.uint8)
    prints = {}
    for number, (base, flips, shift) in enumerate(items):
        data = bases[base].copy()
        for bit in random.integers(0, 512, flips):
            data[bit // 8] ^= 1 << (bit % 8)
        data[64:] = np.clip(data[64:].astype(int) + shift, 0, 255)
        prints[str(number)] = data.tobytes()
    found, links = clusters(prints)
    where = {digest: number for number, members in enumerate(found) for digest in members}
    for one, mine in prints.items():
        for other, theirs in prints.items():
            bits = np.bitwise_count(np.frombuffer(mine[:64], "u1") ^ np.frombuffer(theirs[:64], "u1")).sum()
            if bits < 16 and look_alike(mine, theirs):
                assert where[one] == where[other]
    assert all(look_alike(prints[one], prints[other]) for one, other, _ in links)
    assert len(links) == len(prints) - len(found)

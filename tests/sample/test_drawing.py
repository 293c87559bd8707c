import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from sample.drawing import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    SECOND_COLOURS,
    SIZES,
    ProductLook,
    random_look,
    render,
    render_cutout,
    seeded,
)
from sample.shapes import SHAPES, Pen


def look_of(kind: str, **changes: object) -> ProductLook:
    plain = ProductLook(
        kind=kind,
        colour="red",
        pattern="plain",
        size="medium",
        second="white",
        trim=(120, 120, 126),
        background="white",
        backdrop=(212, 226, 242),
        scale=0.9,
        offset=(0.0, 0.0),
        rotation=0.0,
        mirror=False,
        light=1.0,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def shrunk(look: ProductLook, seed: int = 0) -> Image.Image:
    """What a small model sees: 64 pixels a side."""
    return render(look, 512, 512, seeded(seed)).resize((64, 64), Image.Resampling.BOX)


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference a channel, of 255."""
    return sum(ImageStat.Stat(ImageChops.difference(first, second)).mean) / 3


@given(
    seed=st.integers(0, 2**32),
    width=st.integers(16, 300),
    height=st.integers(16, 300),
)
@settings(max_examples=60)
def test_any_look_at_any_size_is_a_picture_of_that_size_and_always_the_same(
    seed: int, width: int, height: int
):
    look = random_look(seeded(seed))
    first = render(look, width, height, seeded(seed))
    assert first.size == (width, height)
    assert first.mode == "RGB"
    assert first.tobytes() == render(look, width, height, seeded(seed)).tobytes()


@given(seed=st.integers(0, 2**32))
def test_a_random_look_stays_within_what_can_be_read(seed: int):
    look = random_look(seeded(seed))
    assert look.kind in KINDS
    assert look.colour in COLOURS
    assert look.size in SIZES
    assert look.pattern in SHAPES[look.kind].patterns
    assert look.second in SECOND_COLOURS[look.colour]
    assert look.background in BACKGROUNDS
    assert (look.colour, look.background) != ("white", "white")


def test_a_random_look_keeps_to_the_kinds_and_colours_given():
    rng = seeded(0)
    looks = [random_look(rng, kinds=("belt", "hat"), colours=("black",)) for _ in range(50)]
    assert {look.kind for look in looks} == {"belt", "hat"}
    assert {look.colour for look in looks} == {"black"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", range(3))
def test_a_shape_fills_its_box_and_stays_within(kind: str, size: int):
    shape = SHAPES[kind]
    width, height = shape.widths[size], shape.heights[size]
    pen = Pen((600, 600), 200, (0, height / 2), rotation=0, mirror=False, cloth=(200, 0, 0), trim=(0, 0, 0))
    shape.draw(pen, width, height)
    left, top, right, bottom = pen.mask.getbbox() or (0, 0, 0, 0)
    box = (300 - width * 100, 300 - height * 100, 300 + width * 100, 300 + height * 100)
    assert (left, top, right, bottom) == pytest.approx(box, abs=18)
    assert left > box[0] - 4
    assert top > box[1] - 4
    assert right < box[2] + 4
    assert bottom < box[3] + 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_product_lies_whole_in_its_frame(kind: str, size: str):
    for rotation in (-7.0, 7.0):
        look = look_of(kind, size=size, scale=0.92, offset=(0.5, 0.5), rotation=rotation)
        for width, height in ((200, 150), (150, 200)):
            cutout = render_cutout(look, width, height, seeded(0))
            left, top, right, bottom = cutout.getchannel("A").getbbox() or (0, 0, 0, 0)
            assert left > 0
            assert top > 0
            assert right < width
            assert bottom < height
            assert (right - left) * (bottom - top) > 0.15 * width * height, "the product fills its frame"


@pytest.mark.parametrize("kind", KINDS)
def test_colours_patterns_and_sizes_differ_at_64_pixels(kind: str):
    plain = shrunk(look_of(kind))
    noise = difference(plain, shrunk(look_of(kind), seed=1))  # folds fall elsewhere
    for colour in COLOURS:
        if colour != "red":
            assert difference(plain, shrunk(look_of(kind, colour=colour))) > 3 * noise + 2
    patterns = [shrunk(look_of(kind, pattern=pattern)) for pattern in SHAPES[kind].patterns]
    sizes = [shrunk(look_of(kind, size=size)) for size in SIZES]
    for group in (patterns, sizes):
        for index, first in enumerate(group):
            for second in group[index + 1 :]:
                assert difference(first, second) > 2 * noise + 2


def test_kinds_differ_at_64_pixels():
    pictures = [shrunk(look_of(kind)) for kind in KINDS]
    for index, first in enumerate(pictures):
        for second in pictures[index + 1 :]:
            assert difference(first, second) > 10


def blue_pixels(look: ProductLook) -> int:
    cutout = render_cutout(look, 256, 256, seeded(0))
    return sum(b > r + 60 and a == 255 for r, _, b, a in cutout.get_flattened_data())


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_colour_is_never_a_minor_one(kind: str):
    for size in SIZES:
        whole = blue_pixels(look_of(kind, colour="blue", second="sand", size=size))
        for pattern in SHAPES[kind].patterns:
            kept = blue_pixels(look_of(kind, colour="blue", second="sand", size=size, pattern=pattern))
            assert kept > 0.3 * whole, f"{size} {pattern}"

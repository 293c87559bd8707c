"""Decoding and normalising, on pictures as feeds hold them."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from fovea.images import PictureError, PictureLimits, decode_picture, decode_scaled, encode_jpeg, normalise

LIMITS = PictureLimits(max_bytes=1 << 20, max_pixels=1_000_000, min_side=8)


def picture(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(data: bytes, limits: PictureLimits = LIMITS, longest_side: int | None = None) -> str:
    with pytest.raises(PictureError) as caught:
        decode_picture(data, limits, longest_side)
    return caught.value.reason


def pixel(image: Image.Image, x: int, y: int) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)[y, x].astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_decodes_what_feeds_send(kind: str) -> None:
    image = decode_picture(encoded(picture(), kind), LIMITS)
    assert image.size == (60, 40)
    assert np.abs(pixel(image, 5, 5) - (255, 0, 0)).max() < 20
    assert np.abs(pixel(image, 55, 35) - (0, 0, 255)).max() < 20


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "ICO", "EPS", "PDF"])
def test_other_formats_are_not_opened(kind: str) -> None:
    assert refused(encoded(picture(), kind)) == "not_a_picture"


@pytest.mark.parametrize(
    "data",
    [b"", b"<html><body>Not here</body></html>", b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"\xff\xd8"],
)
def test_what_is_no_picture(data: bytes) -> None:
    assert refused(data) == "not_a_picture"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_files_are_damaged(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert refused(data[: len(data) * 3 // 4]) == "damaged"


@given(st.data())
@settings(max_examples=150)
def test_hostile_bytes_raise_nothing_but_picture_errors(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]))
    content = bytearray(encoded(picture(), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PictureError):
        assert decode_picture(bytes(content), LIMITS, 30).mode == "RGB"


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large and holds little."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("width", "height"), [(1001, 1000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_pixels_are_bounded_by_the_header(width: int, height: int) -> None:
    assert refused(bomb(width, height)) == "too_many_pixels"


def test_bytes_are_bounded() -> None:
    data = encoded(picture())
    assert refused(data, PictureLimits(max_bytes=len(data) - 1)) == "too_large"


@pytest.mark.parametrize("size", [(7, 100), (100, 7), (1, 1)])
def test_very_small_pictures_are_refused(size: tuple[int, int]) -> None:
    assert refused(encoded(picture(*size))) == "too_small"


@pytest.mark.parametrize("longest_side", [None, 30])
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, "red"), (2, "blue"), (3, "blue"), (4, "red"), (5, "red"), (6, "red"), (7, "blue"), (8, "blue")],
)
def test_exif_rotation_is_applied(orientation: int, corner: str, longest_side: int | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_picture(encoded(picture(120, 80), "JPEG", exif=exif), LIMITS, longest_side)
    assert (image.width > image.height) == (orientation < 5)
    expected = {"red": (255, 0, 0), "blue": (0, 0, 255)}[corner]
    assert np.abs(pixel(image, 3, 3) - expected).max() < 20
    assert not image.getexif()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("longest_side", [30, 500])
def test_the_size_before_scaling_is_that_of_the_upright_picture(orientation: int, longest_side: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    scaled = decode_scaled(encoded(picture(401, 400), "JPEG", exif=exif), LIMITS, longest_side)
    assert scaled.original_size == ((401, 400) if orientation < 5 else (400, 401))
    assert max(scaled.image.size) == min(longest_side, 401)


def test_encoding_into_a_file_gives_what_encoding_into_memory_gives() -> None:
    image = picture(333, 222)
    assert encode_jpeg(image) == encoded(image, "JPEG", quality=90)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    source = picture(mode=mode)
    image = decode_picture(encoded(source, "JPEG" if mode == "CMYK" else "PNG"), LIMITS)
    expected = source.convert("RGB").getpixel((5, 5))
    assert np.abs(pixel(image, 5, 5) - expected).max() < 25


def test_sixteen_bit_grey_is_scaled_not_cut() -> None:
    grey = np.full((20, 20), 0x8000, dtype=np.uint16)
    image = decode_picture(encoded(Image.fromarray(grey)), LIMITS)
    assert np.abs(pixel(image, 5, 5) - 128).max() < 3


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert (pixel(decode_picture(encoded(clear), LIMITS), 3, 3) == 255).all()
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 128))
    assert np.abs(pixel(decode_picture(encoded(half, "WEBP", lossless=True), LIMITS), 3, 3) - 127).max() < 3
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([10, 20, 30])
    data = encoded(palette, "GIF", transparency=0)
    assert (pixel(decode_picture(data, LIMITS), 3, 3) == 255).all()


def test_nothing_but_pixels_is_kept() -> None:
    exif = Image.Exif()
    exif[0x013B] = "Somebody"
    data = encoded(
        picture(), "JPEG", exif=exif, comment=b"secret comment", xmp=b"<x:xmpmeta/>", icc_profile=b"icc"
    )
    plain = encode_jpeg(decode_picture(data, LIMITS))
    for secret in (b"secret", b"Somebody", b"xmpmeta", b"icc", b"Exif"):
        assert secret not in plain


@given(
    st.integers(8, 1000),
    st.integers(8, 1000),
    st.integers(16, 512),
    st.sampled_from(["JPEG", "PNG"]),
)
@settings(max_examples=40)
def test_scaling_keeps_the_proportions_and_never_enlarges(
    w: int, h: int, longest_side: int, kind: str
) -> None:
    source = picture(w, h)
    image = normalise(decode_picture(encoded(source, kind), LIMITS, longest_side), longest_side)
    factor = min(1.0, longest_side / max(w, h))
    assert max(image.size) == min(max(w, h), longest_side)
    # A JPEG that is decoded at a fraction of its size is rounded up to whole pixels first.
    assert abs(image.width - w * factor) <= 1.5
    assert abs(image.height - h * factor) <= 1.5


def test_decoding_at_a_fraction_shows_the_same_picture() -> None:
    y, x = np.mgrid[0:960, 0:1000]
    waves = np.stack([np.sin(x / 60) * 99, np.cos(y / 80) * 99, np.sin((x + y) / 90) * 99], axis=-1) + 128
    data = encoded(Image.fromarray(waves.astype(np.uint8)), "JPEG", quality=95)
    fast = normalise(decode_picture(data, LIMITS, 240), 240)
    full = normalise(decode_picture(data, LIMITS), 240)
    assert fast.size == full.size
    assert np.abs(np.asarray(fast).astype(int) - np.asarray(full)).mean() < 1.5


@pytest.mark.parametrize("letters", [16, 20, 24])
def test_small_print_stays_sharp(letters: int) -> None:
    """By peak signal-to-noise ratio, it is 6 dB nearer to Lanczos' filter than averaging over areas is."""
    page = Image.new("RGB", (1000, 1000), "white")
    line = "Full Price: 1,249.00 \u20ac, 30 % off, article 8071-5526, made of wool and silk " * 3
    for top in range(0, 1000, letters + 8):
        ImageDraw.Draw(page).text((3 - top % 50, top), line, "black", ImageFont.load_default(letters))
    best = np.asarray(page.resize((672, 672), Image.Resampling.LANCZOS), float)

    def decibels(image: Image.Image) -> float:
        return float(10 * np.log10(255**2 / ((np.asarray(image, float) - best) ** 2).mean()))

    averaged = page.resize((672, 672), Image.Resampling.BOX)
    assert decibels(normalise(page, 672)) > decibels(averaged) + 6


def test_the_same_picture_gives_the_same_bytes() -> None:
    data = encoded(picture(500, 300), "JPEG")
    once, again = (encode_jpeg(normalise(decode_picture(data, LIMITS, 100), 100)) for _ in range(2))
    assert once == again
    assert Image.open(io.BytesIO(once)).size == (100, 60)

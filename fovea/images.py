"""Decode and normalise untrusted pictures within limits."""

import io
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import BinaryIO, Literal

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""The supported formats; only the first frame of an animation is decoded."""

JPEG_QUALITY = 90

# EXIF orientations with width and height swapped.
_QUARTER_TURNS = {5, 6, 7, 8}

PictureReason = Literal["too_large", "not_a_picture", "too_many_pixels", "too_small", "damaged"]
"""Why a picture cannot be used. ``not_a_picture``: the file is in none of `FORMATS`; ``damaged``: its start
is valid, but it cannot be decoded completely."""


class PictureError(Exception):
    """A picture cannot be used: ``reason`` is for statistics, the message for users."""

    def __init__(self, reason: PictureReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class PictureLimits(BaseModel):
    """Limits on the size of a picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=32 << 20, gt=0)
    max_pixels: int = Field(default=64_000_000, gt=0, le=85_000_000)
    """Width times height, read from the header before decoding. Pillow warns above 89 million, and refuses
    above twice that."""
    min_side: int = Field(default=28, gt=0)
    """The shorter side, in pixels."""


@dataclass(frozen=True)
class Scaled:
    """A decoded picture that is scaled down, with its original upright size as (width, height)."""

    image: Image.Image
    original_size: tuple[int, int]


def decode_picture(data: bytes, limits: PictureLimits, longest_side: int | None = None) -> Image.Image:
    """Decode a picture to upright RGB, with transparency replaced by white.

    With ``longest_side``, a much larger JPEG is decoded at a half, a quarter or an eighth of its
    size, never below ``longest_side``, which is several times faster; `normalise` does the rest.

    Raises:
        PictureError: the picture exceeds the limits, is not a picture, or is damaged.
    """
    return _decode(data, limits, longest_side)[0]


def decode_scaled(data: bytes, limits: PictureLimits, longest_side: int) -> Scaled:
    """Decode a picture to upright RGB on white, and scale it down to ``longest_side``.

    Raises:
        PictureError: the picture exceeds the limits, is not a picture, or is damaged.
    """
    image, original_size = _decode(data, limits, longest_side)
    return Scaled(normalise(image, longest_side), original_size)


def normalise(image: Image.Image, longest_side: int) -> Image.Image:
    """Scale a picture down in proportion until neither side exceeds ``longest_side``; never scale up."""
    size = _scaled(image.size, longest_side)
    # When scaling down, Hamming's window is as sharp as bicubic, at half the cost of Lanczos.
    return image if size == image.size else image.resize(size, Image.Resampling.HAMMING, reducing_gap=3)


def encode_jpeg(image: Image.Image) -> bytes:
    """Return an RGB picture as JPEG; the same picture gives the same bytes."""
    # Pillow releases Python's global lock only when it encodes into a real file.
    with _scratch_file() as file:
        image.save(file, "JPEG", quality=JPEG_QUALITY)
        file.seek(0)
        return file.read()


def _scratch_file() -> BinaryIO:
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("jpeg"), "w+b")
    return tempfile.TemporaryFile()


def _decode(
    data: bytes, limits: PictureLimits, longest_side: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    """Return the upright RGB picture, and its size without the reduction of the decoder."""
    if not data:
        raise PictureError("not_a_picture", "the file is empty")
    if len(data) > limits.max_bytes:
        raise PictureError("too_large", f"{len(data):,} bytes, at most {limits.max_bytes:,} are allowed")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, limits)
            width, height = image.size
            if longest_side is not None:
                image.draft(None, _scaled(image.size, longest_side))
            image.load()
            turned = image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
            # In place, and converted only if needed: a copy takes as long as decoding.
            ImageOps.exif_transpose(image, in_place=True)
            upright = _rgb(image)
            upright.getexif().clear()
            upright.info.clear()
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError("not_a_picture", f"not a picture in one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise PictureError("too_many_pixels", str(error)) from error
    except Exception as error:
        # With hostile bytes, a decoder can raise nearly anything: ValueError, IndexError, struct.error …
        raise PictureError("damaged", f"cannot be decoded ({error})") from error
    return upright, (height, width) if turned else (width, height)


def _check_size(image: Image.Image, limits: PictureLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise PictureError(
            "too_many_pixels", f"{width} x {height} pixels, at most {limits.max_pixels:,} are allowed"
        )
    if min(width, height) < limits.min_side:
        raise PictureError(
            "too_small", f"{width} x {height} pixels, the shorter side must have {limits.min_side}"
        )


def _scaled(size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    factor = min(1.0, longest_side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's conversion clips 16-bit grey at 255 instead of scaling it.
        image = image.point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white

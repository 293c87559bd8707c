"""Crops: their layout, their number and what is refused."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fovea.phi3v import Phi3VImageProcessor

SIDE = 8
small = Phi3VImageProcessor(
    num_crops=4, crop_size=SIDE, num_img_tokens=4, image_mean=[0, 0, 0], image_std=[1, 1, 1]
)


@given(
    width=st.integers(1, 300), height=st.integers(1, 300), num_crops=st.integers(1, 20), grey=st.booleans()
)
def test_layout(width, height, num_crops, grey):
    noise = np.random.default_rng(width).integers(
        0, 256, (height, width) if grey else (height, width, 3), np.uint8
    )
    made = small(noise, num_crops=num_crops)
    (padded,) = made["image_sizes"].tolist()
    rows, columns = padded[0] // SIDE, padded[1] // SIDE
    assert padded == [rows * SIDE, columns * SIDE]
    assert rows * columns <= num_crops
    assert small.crop_grid(width, height, num_crops) == (columns, rows)
    assert made["pixel_values"].shape == (1 + rows * columns, 3, SIDE, SIDE)
    assert made["num_img_tokens"].tolist() == [(rows * columns + 1) * 4 + 1 + (rows + 1) * 2]
    assert made["pixel_values"].dtype == torch.float32


@settings(max_examples=30)
@given(width=st.integers(1, 200), height=st.integers(1, 200), num_crops=st.integers(1, 20))
def test_a_turned_picture_gives_turned_crops(width, height, num_crops):
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    if width == height:
        return
    one, turned = (small(array, num_crops=num_crops) for array in (noise, noise.transpose(1, 0, 2).copy()))
    rows, columns = (one["image_sizes"][0] // SIDE).tolist()
    crops = turned["pixel_values"][1:].view(columns, rows, 3, SIDE, SIDE).permute(1, 0, 2, 4, 3)
    assert torch.equal(one["pixel_values"][1:], crops.reshape(-1, 3, SIDE, SIDE))


def test_crops_put_together_are_the_resized_picture_between_white():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8))
    made = small(picture, num_crops=8)
    assert made["image_sizes"].tolist() == [[16, 32]]
    rows, columns = (made["image_sizes"][0] // SIDE).tolist()
    tiles = made["pixel_values"][1:].view(rows, columns, 3, SIDE, SIDE)
    whole = tiles.permute(0, 3, 1, 4, 2).reshape(rows * SIDE, columns * SIDE, 3)
    height = int(columns * SIDE / 3)
    top = (rows * SIDE - height) // 2
    resized = np.asarray(picture.resize((columns * SIDE, height), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(whole[top : top + height].numpy(), resized, atol=1e-6)
    assert (whole[:top] == 1).all()
    assert (whole[top + height :] == 1).all()


def test_several_pictures_follow_one_another():
    pictures = [Image.new("RGB", (30, 10), "red"), Image.new("L", (10, 30)), Image.new("RGBA", (5, 5))]
    together = small(pictures)
    alone = [small(picture) for picture in pictures]
    for name in ("pixel_values", "image_sizes", "num_img_tokens"):
        assert torch.equal(together[name], torch.cat([made[name] for made in alone]))
    assert small([])["pixel_values"].shape == (0, 3, SIDE, SIDE)
    assert isinstance(small(pictures, return_tensors="np")["pixel_values"], np.ndarray)


def test_the_published_token_counts():
    published = Phi3VImageProcessor()
    assert [published.num_image_tokens(336 * n, 336 * n) for n in (1, 2, 4)] == [313, 757, 2509]


def test_num_crops_is_stored_and_may_be_overridden(tmp_path):
    small.save_pretrained(tmp_path)
    loaded = Phi3VImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == small.to_dict()
    assert Phi3VImageProcessor.from_pretrained(tmp_path, num_crops=9).num_crops == 9
    square = Image.new("RGB", (50, 50))
    assert len(loaded(square)["pixel_values"]) == 5
    assert len(loaded(square, num_crops=9)["pixel_values"]) == 10


def truncated() -> Image.Image:
    encoded = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(encoded, "PNG")
    return Image.open(io.BytesIO(encoded.getvalue()[:400]))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("https://example.org/bag.jpg", "not an image but str"),
        (None, "not an image but NoneType"),
        (Image.new("RGB", (0, 5)), "no pixels: it is 0 x 5"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 5, 3), np.float32), "must be uint8"),
        (np.zeros((3, 5, 5), np.uint8), "must be uint8 of height x width"),
        (truncated(), "cannot be decoded"),
    ],
    ids=["address", "none", "empty", "empty array", "floats", "channels first", "truncated"],
)
def test_what_is_refused(wrong, reason):
    with pytest.raises(ValueError, match=f"image 2: .*{reason}"):
        small([Image.new("RGB", (5, 5)), wrong])


def test_settings_that_are_refused():
    with pytest.raises(ValueError, match="num_img_tokens is needed"):
        Phi3VImageProcessor(crop_size=64)
    with pytest.raises(ValueError, match="square"):
        Phi3VImageProcessor(num_img_tokens=143)
    with pytest.raises(ValueError, match="num_crops must be at least 1"):
        small(Image.new("RGB", (5, 5)), num_crops=0)
    with pytest.raises(TypeError, match="do_resize"):
        small(Image.new("RGB", (5, 5)), do_resize=False)


def test_a_very_thin_picture():
    made = Phi3VImageProcessor(num_crops=16)(np.zeros((1, 20000, 3), np.uint8))
    assert made["image_sizes"].tolist() == [[336, 336 * 16]]
    assert math.prod(made["pixel_values"].shape) == 17 * 3 * 336**2

"""The image processor gives the pixels that the published one gives."""

import numpy as np
import pytest

from fovea.phi3v import Phi3VImageProcessor

NAMES = ["landscape", "portrait", "square16", "wide16", "tiny1"]


@pytest.mark.parametrize("name", NAMES)
def test_pixels(name, read_goldens, golden_picture):
    cases, arrays = read_goldens("images")
    case = next(case for case in cases if case["name"] == name)
    picture = golden_picture(case["seed"], case["width"], case["height"])
    made = Phi3VImageProcessor()(picture, num_crops=case["num_crops"])
    pixels = made["pixel_values"].numpy()
    assert list(pixels.shape) == case["pixel_shape"]
    assert made["image_sizes"].tolist() == [case["image_size"]]
    assert made["num_img_tokens"].tolist() == [case["num_img_tokens"]]
    np.testing.assert_allclose(pixels.mean(axis=(2, 3)), arrays[f"{name}.crop_mean"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(pixels[:, :, ::24, ::24], arrays[f"{name}.sample"], rtol=0, atol=1e-4)


def test_every_golden_is_held(read_goldens):
    assert [case["name"] for case in read_goldens("images")[0]] == NAMES

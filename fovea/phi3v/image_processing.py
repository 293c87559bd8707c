"""Cut pictures into crops as Phi-3-Vision was trained, with Pillow, NumPy and torch, without torchvision."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PUBLISHED_CROP_SIZE = 336
PUBLISHED_NUM_IMG_TOKENS = 144


class Phi3VImagesKwargs(ImagesKwargs, total=False):  # type: ignore[misc, call-arg]
    """The settings that `from_pretrained` can override."""

    num_crops: int
    crop_size: int
    num_img_tokens: int


class Phi3VImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Cuts a picture into crops, and adds one global view of the whole picture.

    Args:
        num_crops: the maximum number of crops of a picture. It determines the number of tokens, and
            must be the same in training, evaluation and serving.
        crop_size: the side of a crop in pixels: `vision_config.image_size` of the model.
        image_mean: of the three channels, on the scale of 0 to 1.
        image_std: of the three channels, on the scale of 0 to 1.
        num_img_tokens: the tokens of one crop, `config.tokens_per_side ** 2` of the model. It is required
            if `crop_size` is not the published one.
        **kwargs: other fields of a published file, which are ignored.

    Raises:
        ValueError: `num_img_tokens` is missing or not a square.
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012
    valid_kwargs = Phi3VImagesKwargs

    def __init__(
        self,
        num_crops: int = 16,
        crop_size: int = PUBLISHED_CROP_SIZE,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        num_img_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("auto_map", "image_processor_type"):
            kwargs.pop(name, None)
        super().__init__(**kwargs)
        if num_img_tokens is None:
            if crop_size != PUBLISHED_CROP_SIZE:
                raise ValueError(f"num_img_tokens is needed for crops of {crop_size} pixels")
            num_img_tokens = PUBLISHED_NUM_IMG_TOKENS
        if math.isqrt(num_img_tokens) ** 2 != num_img_tokens:
            raise ValueError(f"num_img_tokens must be a square, not {num_img_tokens}")
        self.num_crops = num_crops
        self.crop_size = crop_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.num_img_tokens = num_img_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `preprocessor_config.json`."""
        output: dict[str, Any] = super().to_dict()
        return output | {"processor_class": "Phi3VProcessor"}

    def num_image_tokens(self, height: int, width: int) -> int:
        """Return the number of tokens of a picture whose padded size is `height` x `width` pixels."""
        side = math.isqrt(self.num_img_tokens)
        rows, columns = height // self.crop_size, width // self.crop_size
        return (rows * columns + 1) * self.num_img_tokens + 1 + (rows + 1) * side

    def crop_grid(self, width: int, height: int, num_crops: int | None = None) -> tuple[int, int]:
        """Return the crops (across, down) of a picture of this width and height, without decoding it.

        Args:
            width: in pixels.
            height: in pixels.
            num_crops: overrides the stored one.
        """
        num_crops = self.num_crops if num_crops is None else num_crops
        if width < height:
            across, down = self.crop_grid(height, width, num_crops)
            return down, across
        fitted_width, fitted_height = fitted_size(width, height, self.crop_size, num_crops)
        return fitted_width // self.crop_size, math.ceil(fitted_height / self.crop_size)

    def preprocess(
        self,
        images: Any,
        *,
        num_crops: int | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Cut pictures into crops.

        Args:
            images: one picture or a list of them: Pillow images, or uint8 arrays, height x width (x
                channels).
            num_crops: overrides the stored one.
            return_tensors: "pt" or "np".

        Returns:
            `pixel_values`, float32 (crops of all pictures, 3, crop_size, crop_size): for each picture its
            global view, then its crops row by row; `image_sizes` (pictures, 2): the padded height and width
            in pixels; `num_img_tokens` (pictures): the number of tokens of each in `input_ids`.

        Raises:
            ValueError: an input is not an image or has no pixels; the message says which, counted from 1.
        """
        pictures = list(images) if isinstance(images, list | tuple) else [images]
        return self.collate(self.crop_all(pictures, num_crops), return_tensors)

    def crop_all(
        self, pictures: Sequence[Any], num_crops: int | None
    ) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        """Return crops and padded size of each picture; an error says which picture, counted from 1."""
        stacks = []
        for number, picture in enumerate(pictures, start=1):
            try:
                stacks.append(self.crops(as_rgb(picture), self.num_crops if num_crops is None else num_crops))
            except ValueError as error:
                raise ValueError(f"image {number}: {error}") from error
        return stacks

    def collate(
        self, stacks: Sequence[tuple[torch.Tensor, tuple[int, int]]], return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Join the results of `crop_all`."""
        empty = torch.empty(0, 3, self.crop_size, self.crop_size)
        data = {
            "pixel_values": torch.cat([stack for stack, _ in stacks] or [empty]),
            "image_sizes": torch.tensor([size for _, size in stacks], dtype=torch.long).reshape(-1, 2),
            "num_img_tokens": [self.num_image_tokens(*size) for _, size in stacks],
        }
        return BatchFeature(data=data, tensor_type=return_tensors)

    def crops(self, picture: Image.Image, num_crops: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return crops (1 + rows * columns, 3, crop_size, crop_size) and the padded (height, width)."""
        if num_crops < 1:
            raise ValueError(f"num_crops must be at least 1, not {num_crops}")
        side = self.crop_size
        # A copy: torch must not share memory that Pillow holds read-only.
        pixels = torch.from_numpy(np.array(fit(picture, side, num_crops)))
        height, width = pixels.shape[:2]
        rows, columns = height // side, width // side
        mean, std = torch.tensor(self.image_mean), torch.tensor(self.image_std)
        planes = pixels.permute(2, 0, 1).float()
        planes.mul_((1 / (255 * std))[:, None, None]).sub_((mean / std)[:, None, None])
        stack = torch.empty(1 + rows * columns, 3, side, side)
        # Pixels are not resampled if the size stays the same.
        stack[0] = (
            planes
            if (height, width) == (side, side)
            else torch.nn.functional.interpolate(planes[None], size=(side, side), mode="bicubic")[0]
        )
        tiles = planes.reshape(3, rows, side, columns, side).permute(1, 3, 0, 2, 4)
        stack[1:].view(rows, columns, 3, side, side).copy_(tiles)
        return stack, (height, width)


def as_rgb(picture: Any) -> Image.Image:
    """Decode to RGB, or raise ValueError."""
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(f"not an image but {type(picture).__name__}")
    if 0 in picture.size:
        raise ValueError(f"the image has no pixels: it is {picture.width} x {picture.height}")
    try:
        return picture.convert("RGB")
    # Pillow's decoders also raise SyntaxError, for example.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(
            f"an array must be uint8 of height x width (x 1, 3 or 4), not {array.dtype} of {array.shape}"
        )
    if 0 in array.shape:
        raise ValueError(f"the image has no pixels: its shape is {array.shape}")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def fit(picture: Image.Image, side: int, num_crops: int) -> Image.Image:
    """Resize to fill the allowed crops, then pad with white to whole crops.

    A picture that is taller than wide is transposed, and transposed back at the end.
    """
    tall = picture.width < picture.height
    if tall:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    width, height = fitted_size(picture.width, picture.height, side, num_crops)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    padded = Image.new("RGB", (width, math.ceil(height / side) * side), (255, 255, 255))
    padded.paste(picture, (0, (padded.height - height) // 2))
    return padded.transpose(Image.Transpose.TRANSPOSE) if tall else padded


def fitted_size(width: int, height: int, side: int, num_crops: int) -> tuple[int, int]:
    """Return width and height in pixels after resizing a picture that is not taller than wide.

    It is as wide as a whole number of crops of `side` pixels, the most that `num_crops` allows.
    """
    ratio = width / height
    across = 1
    while (across + 1) * math.ceil((across + 1) / ratio) <= num_crops:
        across += 1
    # Keep at least one row of very wide pictures.
    return across * side, max(1, int(across * side / ratio))

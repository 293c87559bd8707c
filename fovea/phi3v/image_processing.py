"""Pictures to crops, as Phi-3-Vision was trained: in Pillow, NumPy and torch, without torchvision."""

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


class Phi3VImagesKwargs(ImagesKwargs, total=False):  # type: ignore[misc, call-arg]
    """What may be given to `from_pretrained` and for one call."""

    num_crops: int
    crop_size: int
    tokens_per_side: int


class Phi3VImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Lays a picture out in crops of `crop_size` pixels beside one global view of all of it.

    Args:
        num_crops: the most crops that one picture may take. It decides how many tokens a picture costs, and must be
            the same in training, evaluation and serving.
        crop_size: the side of a crop in pixels: `vision_config.image_size` of the model.
        tokens_per_side: image tokens along a side of a crop: `tokens_per_side` of the model's configuration.
        image_mean, image_std: of the three channels, on the scale of 0 to 1.
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012
    valid_kwargs = Phi3VImagesKwargs

    def __init__(
        self,
        num_crops: int = 16,
        crop_size: int = 336,
        tokens_per_side: int = 12,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        for name in ("auto_map", "image_processor_type", "num_img_tokens"):
            kwargs.pop(name, None)
        super().__init__(**kwargs)
        self.num_crops = num_crops
        self.crop_size = crop_size
        self.tokens_per_side = tokens_per_side
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def to_dict(self) -> dict[str, Any]:
        """What `preprocessor_config.json` holds: the published fields and the crop's measures."""
        output: dict[str, Any] = super().to_dict()
        return output | {"processor_class": "Phi3VProcessor", "num_img_tokens": self.tokens_per_side**2}

    def num_image_tokens(self, height: int, width: int) -> int:
        """Tokens that a picture takes whose padded size is `height` x `width` pixels."""
        side, rows, columns = self.tokens_per_side, height // self.crop_size, width // self.crop_size
        return (rows * columns + 1) * side**2 + 1 + (rows + 1) * side

    def preprocess(
        self,
        images: Any,
        *,
        num_crops: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Cut pictures into crops.

        Args:
            images: one picture or a list of them: Pillow images, or uint8 arrays of height x width (x channels).
            num_crops: instead of the stored one.

        Returns:
            `pixel_values`, float32 (crops of all pictures, 3, crop_size, crop_size): for each picture its global view,
            then its crops row by row; `image_sizes` (pictures, 2): the padded height and width in pixels;
            `num_img_tokens` (pictures): what each takes in `input_ids`.

        Raises:
            ValueError: something is not an image or has no pixels; it says which, counted from 1.
        """
        if kwargs:
            raise TypeError(f"Phi3VImageProcessor: unknown arguments {sorted(kwargs)}")
        pictures = list(images) if isinstance(images, list | tuple) else [images]
        stacks = []
        for number, picture in enumerate(pictures, start=1):
            try:
                stacks.append(self.crops(as_rgb(picture), num_crops or self.num_crops))
            except ValueError as error:
                raise ValueError(f"image {number}: {error}") from error
        return self.collate(stacks, return_tensors)

    def collate(
        self, stacks: Sequence[tuple[torch.Tensor, tuple[int, int]]], return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Join what `crops` gave for several pictures."""
        if stacks:
            pixels = torch.cat([stack for stack, _ in stacks])
        else:
            pixels = torch.empty(0, 3, self.crop_size, self.crop_size)
        sizes = [list(size) for _, size in stacks]
        data = {
            "pixel_values": pixels,
            "image_sizes": torch.tensor(sizes, dtype=torch.long).reshape(-1, 2),
            "num_img_tokens": [self.num_image_tokens(height, width) for height, width in sizes],
        }
        return BatchFeature(data=data, tensor_type=return_tensors)

    def crops(self, picture: Image.Image, num_crops: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """One RGB picture to (1 + rows * columns, 3, side, side) and its padded (height, width)."""
        if num_crops < 1:
            raise ValueError(f"num_crops must be at least 1, not {num_crops}")
        side = self.crop_size
        pixels = np.asarray(fit(picture, side, num_crops))
        height, width = pixels.shape[:2]
        rows, columns = height // side, width // side
        scale = torch.tensor(self.image_std).mul_(255).reciprocal_()
        shift = torch.tensor(self.image_mean).div_(torch.tensor(self.image_std)).neg_()
        planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()
        planes.mul_(scale[:, None, None]).add_(shift[:, None, None])
        stack = torch.empty(1 + rows * columns, 3, side, side)
        stack[:1] = torch.nn.functional.interpolate(planes[None], size=(side, side), mode="bicubic")
        tiles = planes.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4)
        stack[1:].view(rows, columns, 3, side, side).copy_(tiles)
        return stack, (height, width)


def as_rgb(picture: Any) -> Image.Image:
    """Decode to RGB; ValueError where that cannot be."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise ValueError(
                f"an array must be uint8 of 2 or 3 dimensions, not {picture.dtype} of {picture.shape}"
            )
        if 0 in picture.shape:
            raise ValueError(f"the image has no pixels: its shape is {picture.shape}")
        picture = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(f"not an image but {type(picture).__name__}")
    if 0 in picture.size:
        raise ValueError(f"the image has no pixels: it is {picture.width} x {picture.height}")
    try:
        return picture.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error


def fit(picture: Image.Image, side: int, num_crops: int) -> Image.Image:
    """Resize to fill as many crops as allowed, then pad with white to whole crops."""
    tall = picture.width < picture.height
    if tall:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    ratio = picture.width / picture.height
    scale = 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= num_crops:
        scale += 1
    width = scale * side
    # A strip thinner than one pixel after scaling keeps one row.
    height = max(1, int(width / ratio))
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    padded_height = math.ceil(height / side) * side
    padded = Image.new("RGB", (width, padded_height), (255, 255, 255))
    padded.paste(picture, (0, (padded_height - height) // 2))
    return padded.transpose(Image.Transpose.TRANSPOSE) if tall else padded

"""Pictures to compare with: the nearest training picture by the vision tower, and another group's picture."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize

from components.evaluate.split import Split
from fovea.inference import Predictor

Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]

_THREADS = 8


def nearest(
    predictor: Predictor, training: Split, asked: Split, batch_size: int, progress: Progress
) -> list[int]:
    """Return for each row of ``asked`` the row of ``training`` whose picture is nearest, by cosine.

    A picture's vector is the mean of its patches' features, of the whole picture in one crop: one pass of the
    tower. In memory are the vectors of ``training``, 4 bytes a feature, and some pictures.
    """
    total = len(training.rows) + len(asked.rows)

    def report(done: int) -> None:
        progress(done, total)

    known = np.concatenate(list(_vectors(predictor, training, batch_size, 0, report)))
    found = [
        np.argmax(some @ known.T, axis=1)
        for some in _vectors(predictor, asked, batch_size, len(known), report)
    ]
    return [int(place) for place in np.concatenate(found)]


def _vectors(
    predictor: Predictor, split: Split, batch_size: int, done: int, report: Callable[[int], None]
) -> Iterator[Vectors]:
    """Yield vectors (some rows, features) of length 1, in the order of the split."""
    processor = predictor.processor.image_processor
    tower = predictor.model.model.vision_embed_tokens.img_processor["vision_model"]

    def whole(picture: Image.Image) -> torch.Tensor:
        # With one crop allowed the global view is the picture itself; it comes first.
        view: torch.Tensor = processor.crops(picture.convert("RGB"), 1)[0][0]
        return view

    with ThreadPoolExecutor(_THREADS) as pool:
        for pictures in split.pictures(batch_size):
            views = torch.stack(list(pool.map(whole, pictures)))
            done += len(pictures)
            yield _mean_patch(tower, views.to(predictor.model.device, predictor.model.dtype))
            report(done)


@torch.inference_mode()
def _mean_patch(tower: Any, views: torch.Tensor) -> Vectors:
    """Crops (n, 3, side, side) to vectors (n, features) of length 1."""
    vectors: Vectors = normalize(tower(views).float().mean(1)).cpu().numpy()
    return vectors


def shuffle_among_groups(groups: Sequence[str], seed: int = 0) -> list[int] | None:
    """Return for each row the row whose picture it is shown instead.

    Groups are arranged in a random circle and each takes the pictures of the next, its rows in turn. It
    depends on ``groups`` and ``seed`` alone.

    Args:
        groups: The product group of each row.
        seed: Seed of the arrangement.

    Returns:
        Row numbers, or None where there are not two groups to exchange pictures.
    """
    rows: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        rows.setdefault(group, []).append(number)
    circle = sorted(rows)
    if len(circle) < 2:
        return None
    random.Random(seed).shuffle(circle)  # noqa: S311 - an arrangement, not a secret
    donor = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    shown = [0] * len(groups)
    for group, own in rows.items():
        given = rows[donor[group]]
        for turn, number in enumerate(own):
            shown[number] = given[turn % len(given)]
    return shown

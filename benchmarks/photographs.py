"""Generate pictures with the decoding cost of product photographs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((800, 800), (1000, 1000), (1200, 1600), (2000, 2000))
"""Typical sizes in shops, in equal shares: two below the default longest side, two above."""

_OCTAVES = (4, 16, 64, 256)


def write_photographs(folder: Path, number: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    """Write JPEGs of these sizes in turn, always the same ones."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda each: _write(folder, each, sizes[each % len(sizes)]), range(number)))


def _write(folder: Path, number: int, size: tuple[int, int]) -> None:
    """Write noise of several scales, stronger at coarse scales, as in photographs."""
    random = np.random.default_rng(number)
    image = Image.new("RGB", size, "white")
    for cells in _OCTAVES:
        noise = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        image = layer if cells == _OCTAVES[0] else Image.blend(image, layer, 1 / cells**0.5)
    image.save(folder / f"{number:05}.jpg", quality=88)

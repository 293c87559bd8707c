"""Near-duplicates: pictures that were scaled, recompressed or saved in another format, but not changed.

A fingerprint has two parts: a hash of the picture's brightness gradients (512 bits), which finds candidates,
and a small copy in colour, which confirms them. The limits were set on the sample catalogue, whose drawn
products resemble each other: copies at a third of the size or at JPEG quality 50 differ by less than half of
the limits on average, and no two products are within the limits.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.prepare_data.workspace import Prints

_SIDE = 16
_HASH_BYTES = 2 * _SIDE * _SIDE // 8
FINGERPRINT_BYTES = _HASH_BYTES + 3 * _SIDE * _SIDE

_MARGIN = 2
"""The least difference of neighbours, in levels of 255; smaller differences are noise."""
_MIN_CONTRAST = 24
"""The least contrast of a picture, in levels; with less, a picture has nothing to be recognised by."""
_MAX_DIFFERING_BITS = 48
_MAX_MEAN_DIFFERENCE = 2.5
_MAX_DIFFERENCE = 20
"""The largest difference of a value of the small copy, in levels."""

_BANDS = 16
"""Two hashes without an equal band differ in at least 16 bits."""
_WINDOW = 500
"""The following hashes that each hash in a bucket is compared with; few buckets are larger."""
# Neighbouring bits of a flat background are equal, so each band takes its bits from the whole picture.
_ORDER = np.arange(8 * _HASH_BYTES) * 179 % (8 * _HASH_BYTES)

Bytes = NDArray[np.uint8]


def fingerprint(image: Image.Image) -> bytes:
    """Return the fingerprint of an RGB picture: `FINGERPRINT_BYTES` bytes, a function of its pixels."""
    small = image.convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX)
    grey = np.asarray(small, np.int16)
    here = grey[:-1, :-1] + _MARGIN
    brighter = np.concatenate([(grey[:-1, 1:] > here).ravel(), (grey[1:, :-1] > here).ravel()])
    colours = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX))
    return np.packbits(brighter[_ORDER]).tobytes() + colours.tobytes()


def look_alike(one: bytes, other: bytes) -> bool:
    """Return whether two fingerprints have the same colours everywhere."""
    mine, theirs = _colours(one), _colours(other)
    if _contrast(mine) < _MIN_CONTRAST or _contrast(theirs) < _MIN_CONTRAST:
        return False
    difference = np.abs(mine - theirs)
    return bool(difference.max() <= _MAX_DIFFERENCE and difference.mean() <= _MAX_MEAN_DIFFERENCE)


def cluster_pictures(prints: Prints) -> None:
    """Link the pictures that look alike, and set the cluster of each.

    A cluster contains the pictures that look alike, directly or through others. Its number is their smallest
    ID. Memory use is 70 bytes per picture, without whole fingerprints.
    """
    hashes = _hashes(prints)
    roots = np.arange(len(hashes))
    for one, other in _candidates(hashes, roots):
        first, second = find_root(roots, one), find_root(roots, other)
        if first == second:
            continue
        (digest, mine), (other_digest, theirs) = prints.get(one), prints.get(other)
        if look_alike(mine, theirs):
            roots[max(first, second)] = min(first, second)
            prints.link(digest, other_digest, "same" if mine == theirs else "near")
    prints.set_clusters((each, find_root(roots, each)) for each in range(len(roots)) if roots[each] != each)


def _hashes(prints: Prints) -> Bytes:
    hashes = np.empty((len(prints), _HASH_BYTES), np.uint8)
    for number, data in enumerate(prints):
        hashes[number] = np.frombuffer(data, np.uint8, _HASH_BYTES)
    return hashes


def _candidates(hashes: Bytes, roots: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Yield pairs that share a band and differ in few bits, unless ``roots`` already connects them."""
    for band in np.split(hashes, _BANDS, axis=1):
        keys = np.ascontiguousarray(band).view(np.uint32).ravel()
        # Equal keys are sorted by the whole hash, so that the window contains the most similar hashes.
        order = np.lexsort((*hashes.T[:8], keys))
        edges = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]], append=~keys[order[-1:]]))
        several = np.flatnonzero(np.diff(edges) > 1)
        for start, end in zip(edges[several], edges[several + 1], strict=True):
            yield from _alike(order[start:end], hashes, roots)


def _alike(bucket: NDArray[np.intp], hashes: Bytes, roots: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    for place, one in enumerate(bucket[:-1]):
        others = bucket[place + 1 : place + 1 + _WINDOW]
        others = others[roots[others] != roots[one]]
        differing = np.bitwise_count(hashes[others] ^ hashes[one]).sum(axis=1)
        for other in others[differing <= _MAX_DIFFERING_BITS]:
            yield int(one), int(other)


def find_root(roots: NDArray[np.intp], node: int) -> int:
    """Return the root of a node. ``roots`` maps each node to a node of its tree, and a root to itself."""
    while roots[node] != node:
        roots[node] = roots[roots[node]]
        node = int(roots[node])
    return node


def _colours(data: bytes) -> NDArray[np.int16]:
    return np.frombuffer(data, np.uint8, offset=_HASH_BYTES).astype(np.int16)


def _contrast(colours: NDArray[np.int16]) -> int:
    places = colours.reshape(-1, 3)
    return int((places.max(axis=0) - places.min(axis=0)).max())

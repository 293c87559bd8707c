"""Pictures dealt out anew among the product groups, so that no group keeps one of its own."""

import random
from collections.abc import Sequence


def shuffle_among_groups(groups: Sequence[str], seed: int = 0) -> list[int] | None:
    """Return for each row the row whose picture it is shown instead.

    Groups are arranged in a random circle and each takes the pictures of the next, its rows in turn. It
    depends on ``groups`` and ``seed`` alone.

    Args:
        groups: The product group of each row.
        seed: Of the arrangement.

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

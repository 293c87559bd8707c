"""Where image features stand, against the layout written out token by token."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fovea.phi3v.modeling import crop_counts, token_counts, token_rows


def written_out(grid: list[tuple[int, int]], side: int) -> list[int]:
    """The rows that stand at the placeholders of all images, in order."""
    crops = sum(1 + down * across for down, across in grid)
    line_end, mark = crops * side**2, crops * side**2 + 1
    rows, first = [], 0
    for down, across in grid:
        for line in range(down * side):
            for column in range(across * side):
                crop = first + 1 + line // side * across + column // side
                rows.append(crop * side**2 + line % side * side + column % side)
            rows.append(line_end)
        rows.append(mark)
        for line in range(side):
            rows += [first * side**2 + line * side + column for column in range(side)] + [line_end]
        first += 1 + down * across
    return rows


@given(
    grid=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4),
    side=st.integers(1, 4),
    gap=st.integers(0, 3),
)
def test_layout(grid, side, gap):
    sizes = torch.tensor(grid)
    expected = written_out(grid, side)
    assert token_counts(sizes, side).sum() == len(expected)
    placeholders = []
    for count in token_counts(sizes, side).tolist():
        placeholders += [False] * gap + [True] * count
    is_image = torch.tensor([[*placeholders, False], [False] * (len(placeholders) + 1)])
    rows = token_rows(is_image, sizes, side, crops=int(crop_counts(sizes).sum()))
    assert rows.shape == is_image.shape
    assert rows[is_image].tolist() == expected

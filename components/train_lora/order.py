"""The order of the examples: those of like length together, so that little is padded."""

from collections.abc import Iterator, Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


class EpochOrder(LengthGroupedSampler):  # type: ignore[misc]
    """transformers' grouping by length, with an order that follows from the seed and the epoch alone.

    transformers' own draws from the global random state, which after a resume is another one, so that the
    batches that are skipped would not be those that were trained on.

    Args:
        lengths: tokens of each example.
        batch_size: examples of an optimiser step, on all devices together.
        seed: of the order.
        grouped: off for an order that does not look at lengths.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, grouped: bool = True) -> None:
        super().__init__(batch_size, lengths=list(lengths))
        self._seed = seed
        self._grouped = grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield the epoch's examples by place; the longest come first: memory runs out early or never."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        if not self._grouped:
            return iter(torch.randperm(len(self.lengths), generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))

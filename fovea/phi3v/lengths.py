"""Lengths of training sequences, from texts and picture sizes alone: no picture is decoded."""

from collections.abc import Sequence

from fovea.phi3v.processing import Phi3VProcessor
from fovea.text import IMAGE_MARK


class SequenceLengths:
    """Counts the tokens of sequences with one picture each, exactly as the processor makes them.

    Args:
        processor: The model's processor.
        num_crops: Crops a picture is cut into at most.
    """

    def __init__(self, processor: Phi3VProcessor, num_crops: int) -> None:
        self._tokenizer = processor.tokenizer
        self._images = processor.image_processor
        self.num_crops = num_crops

    def tokens(self, texts: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Return the length of each text with a picture of this width and height in pixels."""
        # The processor tokenises the text before and after the picture apart.
        befores, afters = zip(*(text.split(IMAGE_MARK) for text in texts), strict=True)
        lengths = [[len(ids) for ids in self._tokenizer(list(part)).input_ids] for part in (befores, afters)]
        return [
            before + self._picture_tokens(*size) + after
            for before, size, after in zip(lengths[0], sizes, lengths[1], strict=True)
        ]

    def crops(self, width: int, height: int) -> int:
        """Return how many crops a picture is cut into, with the global view."""
        columns, rows = self._images.crop_grid(width, height, self.num_crops)
        return 1 + int(columns * rows)

    def _picture_tokens(self, width: int, height: int) -> int:
        side = self._images.crop_size
        columns, rows = self._images.crop_grid(width, height, self.num_crops)
        tokens: int = self._images.num_image_tokens(rows * side, columns * side)
        return tokens

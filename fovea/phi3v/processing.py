"""Convert text and pictures to the model's input, and token ids back to text."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from fovea.phi3v.image_processing import Phi3VImageProcessor

IMAGE_TOKEN = "<|image|>"  # noqa: S105
MARK = re.compile(r"<\|image_(\d+)\|>")

# A message's content is a string or a list of parts; the k-th image of a conversation becomes <|image_k|>.
CHAT_TEMPLATE = """\
{%- set images = namespace(count=0) -%}
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set images.count = images.count + 1 -%}
{{- '<|image_' ~ images.count ~ '|>\\n' -}}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""


class Phi3VProcessor(ProcessorMixin):  # type: ignore[misc]
    """Combines a model's tokenizer and image processor.

    Args:
        image_processor: cuts pictures into crops.
        tokenizer: any that has `<|image|>` and the turn markers of the published one.
        chat_template: replaces the built-in one, which accepts messages with image parts.
    """

    def __init__(
        self,
        image_processor: Phi3VImageProcessor,
        tokenizer: PreTrainedTokenizerFast,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(
                f"the tokenizer has no {IMAGE_TOKEN}: it is not one of a Phi-3-Vision checkpoint"
            )

    @classmethod
    def _load_tokenizer_from_pretrained(cls, sub_processor_type: str, folder: Any, **kwargs: Any) -> Any:
        # Reads tokenizer.json directly; the class in the published tokenizer_config.json builds its own.
        return PreTrainedTokenizerFast.from_pretrained(folder, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> list[str]:
        """Write the tokenizer's files, `chat_template.jinja` and `preprocessor_config.json`."""
        (combined,) = super().save_pretrained(save_directory, **kwargs)
        # The image processor's settings are stored in one place, which other software reads too.
        Path(combined).unlink()
        written: list[str] = self.image_processor.save_pretrained(save_directory)
        return written

    @property
    def model_input_names(self) -> list[str]:
        """The names of the model's inputs."""
        return ["input_ids", "attention_mask", "pixel_values", "image_sizes"]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        *,
        padding: bool | str = False,
        padding_side: str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        num_crops: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        **others: Any,
    ) -> BatchFeature:
        """Prepare one sample or a batch.

        Args:
            text: one or several; `<|image_k|>` shows the sample's k-th image, in any order, each once, k
                from 1 without gaps.
            images: for one text, an image or a list. For several, a list of lists (None or [] for a text
                without images), or a flat list from which each text takes as many as it has markers.
            padding: True or "longest", or "max_length" with `max_length`. Texts are never truncated.
            padding_side: "right" for training, "left" for generation; by default the tokenizer's.
            max_length: the length to pad to.
            pad_to_multiple_of: pad further, to a multiple of this.
            num_crops: overrides the stored one.
            add_special_tokens: the start-of-sequence token before each chunk of text.
            return_tensors: "pt", "np", or None for lists of ids.
            **others: arguments of transformers for other kinds of input; must be None.

        Returns:
            `input_ids` and `attention_mask` (batch, sequence), with the id of `<|image|>` for each image
            token. With images also `pixel_values` and `image_sizes` as produced by `Phi3VImageProcessor`, in
            the order of the markers in the batch.

        Raises:
            ValueError: a sample cannot be prepared; the message says which (counted from 1), and why.
        """
        unknown = sorted(name for name, value in others.items() if value is not None)
        if unknown:
            raise TypeError(f"Phi3VProcessor has no argument {', '.join(unknown)}")
        if text is None:
            raise ValueError("text is required")
        texts = [text] if isinstance(text, str) else list(text)
        samples = self._samples(texts, images, single=isinstance(text, str))
        encoded = self._encode([sample for sample, _ in samples], add_special_tokens)
        stacks, ids = [], []
        for number, ((sample, pictures), chunks) in enumerate(zip(samples, encoded, strict=True), start=1):
            try:
                shown = self._shown(sample, pictures, num_crops)
                lengths = [self.image_processor.num_image_tokens(*size) for _, size in shown]
                ids.append(self._ids(chunks, lengths))
            except ValueError as error:
                raise ValueError(f"sample {number}: {error}") from error
            stacks += shown
        data = self._pad(
            ids, padding, padding_side or self.tokenizer.padding_side, max_length, pad_to_multiple_of
        )
        if stacks:
            crops = self.image_processor.collate(stacks, None)
            data |= {"pixel_values": crops["pixel_values"], "image_sizes": crops["image_sizes"]}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _samples(self, texts: list[str], images: Any, single: bool) -> list[tuple[str, list[Any]]]:
        """Assign the images to the texts."""
        if images is None:
            return [(text, []) for text in texts]
        if not isinstance(images, list | tuple):
            images = [images]
        nested = any(isinstance(entry, list | tuple) or entry is None for entry in images)
        if nested:
            if len(images) != len(texts):
                raise ValueError(
                    f"{len(texts)} texts and {len(images)} lists of images: give one list for each text"
                )
            return [
                (text, list(own) if isinstance(own, list | tuple) else [] if own is None else [own])
                for text, own in zip(texts, images, strict=True)
            ]
        if single:
            return [(texts[0], list(images))]
        counts = [len(MARK.findall(text)) for text in texts]
        if sum(counts) != len(images):
            raise ValueError(
                f"the {len(texts)} texts have {sum(counts)} image markers, but there are {len(images)} images"
            )
        rest = iter(images)
        return [(text, [next(rest) for _ in range(count)]) for text, count in zip(texts, counts, strict=True)]

    def _shown(
        self, text: str, pictures: list[Any], num_crops: int | None
    ) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        """Return the crops of a sample's images, in the order of its markers."""
        marks = [int(number) for number in MARK.findall(text)]
        if len(set(marks)) != len(marks):
            raise ValueError(f"an image marker occurs twice in the text: {_marks(marks)}")
        if sorted(marks) != list(range(1, len(marks) + 1)):
            raise ValueError(
                f"image markers must count from <|image_1|> without gaps, but the text has {_marks(marks)}"
            )
        if len(marks) != len(pictures):
            raise ValueError(f"the text has {len(marks)} image markers, but there are {len(pictures)} images")
        cropped = self.image_processor.crop_all(pictures, num_crops)
        return [cropped[mark - 1] for mark in marks]

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[list[int]]]:
        """Return the ids of each text's chunks, each tokenised separately as in training."""
        chunks = [MARK.split(text)[::2] for text in texts]
        # One call for all texts: a tokenizer call costs more than a text.
        encoded = iter(
            self.tokenizer(
                [part for text in chunks for part in text], add_special_tokens=add_special_tokens
            ).input_ids
        )
        return [list(islice(encoded, len(text))) for text in chunks]

    def _ids(self, encoded: list[list[int]], lengths: list[int]) -> list[int]:
        """Join a text's chunks, with placeholders for its images between them."""
        if any(self.image_token_id in chunk for chunk in encoded):
            raise ValueError(f"the text contains {IMAGE_TOKEN}; mark the place of an image by <|image_1|>")
        ids = list(encoded[0])
        for length, chunk in zip(lengths, encoded[1:], strict=True):
            ids += [self.image_token_id] * length
            ids += chunk
        return ids

    def _pad(
        self,
        ids: list[list[int]],
        padding: bool | str,
        side: str,
        max_length: int | None,
        multiple: int | None,
    ) -> dict[str, Any]:
        masks = [[1] * len(sample) for sample in ids]
        if padding not in (False, "do_not_pad"):
            length = max(map(len, ids))
            if padding == "max_length":
                if max_length is None or length > max_length:
                    raise ValueError(
                        f"the longest sample has {length} tokens, max_length is {max_length}; nothing is cut"
                    )
                length = max_length
            length = -(-length // (multiple or 1)) * (multiple or 1)
            left = side == "left"
            for sample, mask in zip(ids, masks, strict=True):
                missing = length - len(sample)
                at = 0 if left else len(sample)
                sample[at:at] = [self.tokenizer.pad_token_id] * missing
                mask[at:at] = [0] * missing
        return {"input_ids": ids, "attention_mask": masks}


def _marks(numbers: list[int]) -> str:
    return ", ".join(f"<|image_{number}|>" for number in numbers) or "none"

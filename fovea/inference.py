"""Answers about pictures, for evaluation and serving: batched greedy generation, and parsing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from fovea.errors import UserError
from fovea.field_scores import field_scores
from fovea.phi3v import Phi3VForCausalLM, Phi3VProcessor
from fovea.phi3v.modeling import END_OF_ANSWER_IDS
from fovea.task import Answer, Task, product_task
from fovea.task.task import TASK_FILE

_ROUND_TOKENS = 256

Request = tuple[str, Sequence[Image.Image]]
"""A prompt, and the pictures for its markers ``<|image_1|>``, ``<|image_2|>``, …"""
OnStep = Callable[[list[int]], Sequence[bool]]
"""Called with the newest token of every row after each step of a batch, padding for finished rows; returns
for every row whether to stop it."""


@dataclass(frozen=True)
class Sample:
    """A prepared request: ids (tokens,), crops (n, 3, side, side), padded sizes (pictures, 2)."""

    input_ids: torch.Tensor
    pixel_values: torch.Tensor
    image_sizes: torch.Tensor

    @property
    def tokens(self) -> int:
        """The length of the prompt, including pictures."""
        return len(self.input_ids)


class Predictor:
    """A model, its processor and the task it was tuned for.

    An answer depends only on the model and the request, not on the rest of the batch: in float32, batches
    cause rounding differences in the last digits, too small to change the choice of a token.
    Only one thread at a time may generate; `prepare` may run concurrently in any number of threads.
    """

    def __init__(
        self,
        model: Phi3VForCausalLM,
        processor: Phi3VProcessor,
        task: Task,
        *,
        static_shapes: bool = False,
    ) -> None:
        self.model = model.eval()
        self.static_shapes = static_shapes
        self.processor = processor
        self.task = task

    @classmethod
    def load(
        cls,
        folder: Path,
        task: Task | None = None,
        device: str = "auto",
        dtype: str = "auto",
        num_crops: int | None = None,
        static_shapes: bool = False,
    ) -> Self:
        """Load a Phi-3-Vision folder.

        Args:
            folder: a transformers folder with safetensors.
            task: by default the ``task.json`` next to the weights, or else the product catalogue's task.
            device: ``auto`` uses a GPU if there is one.
            dtype: ``auto`` is bfloat16 on a GPU and float32 on a CPU.
            num_crops: overrides the processor's; must be the value used in tuning.
            static_shapes: generate in a few shapes only: prompts are padded to multiples of 256 tokens and
                batches to powers of two, and the key-value cache has a fixed size. On a GPU
                transformers then compiles the decoding step (torch.compile), once for each shape.

        Raises:
            UserError: the folder does not contain a complete model.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        if task is None:
            task = Task.load(folder) if (folder / TASK_FILE).exists() else product_task()
        try:
            processor = Phi3VProcessor.from_pretrained(folder, local_files_only=True)
            model, report = Phi3VForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}: no Phi-3-Vision can be loaded from here ({_first_line(error)})"
            ) from error
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise UserError(
                f"{folder}: {len(missing)} tensors are missing from the weights, first {missing[0]}"
            )
        if num_crops is not None:
            processor.image_processor.num_crops = num_crops
        return cls(model.to(device), processor, task, static_shapes=static_shapes)

    @property
    def dtype(self) -> str:
        """The dtype of the model's computation, such as ``float32``."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def num_crops(self) -> int:
        """The maximum number of crops of a picture."""
        crops: int = self.processor.image_processor.num_crops
        return crops

    def answer(
        self,
        images: Sequence[Image.Image],
        max_new_tokens: int = 64,
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:
        """Answer the task's question for each picture, in the order of ``images``."""
        prompt = self.task.prompt()
        return self.generate([(prompt, [image]) for image in images], max_new_tokens, batch_size, progress)

    def generate(
        self,
        requests: Sequence[Request],
        max_new_tokens: int = 64,
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:
        """Answer any number of requests, batched by length; answers are in the order of the requests.

        ``progress`` is called with (done, total) after each batch.
        """
        answers: dict[int, Answer] = {}
        for batch in _batches(requests, batch_size):
            samples = [self.prepare(*requests[index]) for index in batch]
            answers.update(zip(batch, self.generate_batch(samples, max_new_tokens), strict=True))
            if progress is not None:
                progress(len(answers), len(requests))
        return [answers[index] for index in range(len(requests))]

    def prepare(self, prompt: str, images: Sequence[Image.Image]) -> Sample:
        """Tokenise a prompt and cut its pictures into crops.

        Raises:
            ValueError: markers and pictures do not match.
        """
        ready = self.processor(text=[prompt], images=[list(images)], return_tensors="pt")
        none = self.processor.image_processor.collate([])
        return Sample(
            ready["input_ids"][0],
            ready.get("pixel_values", none["pixel_values"]),
            ready.get("image_sizes", none["image_sizes"]),
        )

    @torch.inference_mode()
    def generate_batch(
        self,
        samples: Sequence[Sample],
        max_new_tokens: int | Sequence[int] = 64,
        on_step: OnStep | None = None,
    ) -> list[Answer]:
        """Answer prepared requests in one batch, padded on the left.

        Args:
            samples: the requests.
            max_new_tokens: the maximum length of an answer; one for all, or one for each.
            on_step: called with each token as it is generated; can stop answers early. A stopped answer
                has the text so far.
        """
        limits = [max_new_tokens] * len(samples) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        asked, longest = len(samples), max(sample.tokens for sample in samples)
        if self.static_shapes:
            # Repeats of the last row, which stop together with it.
            again = (1 << (asked - 1).bit_length()) - asked
            samples, limits = [*samples, *[samples[-1]] * again], [*limits, *limits[-1:] * again]
            longest = -(-longest // _ROUND_TOKENS) * _ROUND_TOKENS
        device = self.model.device
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.full((len(samples), longest), pad)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(samples):
            ids[row, longest - sample.tokens :] = sample.input_ids
            mask[row, longest - sample.tokens :] = 1
        output = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            pixel_values=torch.cat([sample.pixel_values for sample in samples]).to(device, self.model.dtype),
            image_sizes=torch.cat([sample.image_sizes for sample in samples]).to(device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max(limits),
                cache_implementation="static" if self.static_shapes else None,
                eos_token_id=END_OF_ANSWER_IDS,
                pad_token_id=pad,
            ),
            logits_processor=LogitsProcessorList([likelihoods := _Likelihoods()]),
            stopping_criteria=StoppingCriteriaList([stops := _Stops(limits, on_step, asked)]),
        )
        rows = output[:, longest:].tolist()
        return [
            self._read(sample, row[:length], logprobs)
            for sample, row, length, logprobs in list(
                zip(samples, rows, stops.lengths, likelihoods.rows(), strict=True)
            )[:asked]
        ]

    def _read(self, sample: Sample, ids: list[int], logprobs: list[float]) -> Answer:
        end = next((place for place, token in enumerate(ids) if token in END_OF_ANSWER_IDS), None)
        text = self._decode(ids[:end])
        fields, error = self.task.parse(text)
        spans = self.task.spans(text) if fields is not None else None
        return Answer(
            text=text,
            fields=fields,
            parse_error=error,
            prompt_tokens=sample.tokens,
            completion_tokens=len(ids) if end is None else end + 1,
            finish_reason="length" if end is None else "stop",
            scores=None
            if spans is None
            else field_scores(text, spans, ids[:end], logprobs, self._decode, ended=end is not None),
        )

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.processor.tokenizer.decode(ids, skip_special_tokens=True))


class _Likelihoods(LogitsProcessor):  # type: ignore[misc]
    """Records, for each row and step, the log-probability of the most likely token, the one that is chosen.

    It does not change the logits, and waits for the device only at the end.
    """

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Record the logits (rows, vocabulary), float32, and return them unchanged."""
        self._steps.append(scores.log_softmax(dim=-1).amax(dim=-1))
        return scores

    def rows(self) -> list[list[float]]:
        """Return the log-probabilities of each row's steps."""
        found: list[list[float]] = torch.stack(self._steps, dim=-1).tolist()
        return found


class _Stops(StoppingCriteria):  # type: ignore[misc]
    """Stops each row of a batch at its limit, or on request; ``lengths`` has the resulting lengths.

    Rows beyond the first ``asked`` repeat the last of those, and stop with it.
    """

    def __init__(self, limits: Sequence[int], on_step: OnStep | None, asked: int) -> None:
        self.lengths = list(limits)
        self._on_step = on_step
        self._asked = asked
        self._steps = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which rows stop with the newest token; `generate` calls this after each step."""
        self._steps += 1
        if self._on_step is not None:
            stopped = list(self._on_step(input_ids[: self._asked, -1].tolist()))
            stopped += stopped[-1:] * (len(self.lengths) - self._asked)
            self.lengths = [
                min(length, self._steps) if stop else length
                for length, stop in zip(self.lengths, stopped, strict=True)
            ]
        return torch.tensor([length <= self._steps for length in self.lengths], device=input_ids.device)


def _batches(requests: Sequence[Request], batch_size: int) -> Iterator[list[int]]:
    """Yield indices in batches of requests of similar length, to reduce padding.

    The tokens of a picture depend on its proportions, which are known without cutting it into crops.
    """

    def shape(index: int) -> tuple[Any, ...]:
        prompt, images = requests[index]
        sides = [(image.width < image.height, max(image.size) / min(image.size)) for image in images]
        return len(images), sides, len(prompt)

    order = sorted(range(len(requests)), key=shape)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

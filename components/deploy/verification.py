"""Verification of a served model: its answers about held-out pictures must be those of its evaluation."""

import base64
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq

from components.deploy.parameters import Example
from fovea.errors import UserError
from fovea.evaluation.calibration import Calibration
from fovea.predictions import fetch_predictions
from fovea.records import DatasetRecord, EvaluationRecord
from fovea.storage import Storage
from fovea.task import Answer, FieldValue, Task

PREDICT_PATH = "/v1/models/{name}:predict"
CHAT_PATH = "/openai/v1/chat/completions"

_COLDER = 4
_RISK = 0.001
_AT_ONCE = 16


@dataclass(frozen=True)
class Probe:
    """A held-out picture, with the evaluation's answer and the truth.

    ``likelihood`` is the evaluation's, of all fields together; None where its answer could not be parsed.
    """

    row_id: str
    picture: bytes
    text: str
    truth: dict[str, FieldValue]
    likelihood: float | None = 1.0

    @property
    def base64(self) -> str:
        """The picture's bytes as text."""
        return base64.b64encode(self.picture).decode()


@dataclass(frozen=True)
class Expectation:
    """What a server must answer, and with which model and task."""

    name: str
    model_digest: str
    task: Task
    max_new_tokens: int
    dtype: str
    max_answer_seconds: float = math.inf
    """Limit of the 95th percentile of the time for one picture."""
    calibration: Calibration | None = None
    """The calibration of its confidences; None where it must give none."""


@dataclass(frozen=True)
class Verification:
    """What a verification found; ``example`` is None where no answer was received."""

    passed: bool
    reason: str
    asked: int = 0
    agreed: int = 0
    example: Example | None = None


def load_probes(
    storage: Storage, dataset: DatasetRecord, evaluation: EvaluationRecord, count: int
) -> list[Probe]:
    """Return the first ``count`` pictures that the evaluation answered, in the order of its predictions.

    Raises:
        UserError: a picture that was evaluated is not in the dataset, or none was.
    """
    predictions = fetch_predictions(storage, evaluation, dataset.task)[:count]
    answers = {each.row.row_id: each.answer for each in predictions}
    shards = storage.download(dataset, pattern=f"{evaluation.split}-*.parquet")
    names = list(dataset.task.fields)
    rows = pq.read_table(
        sorted(shards.glob(f"{evaluation.split}-*.parquet")),
        columns=["row_id", "image", *names],
        filters=[("row_id", "in", list(answers))],
    ).to_pylist()
    found = {row["row_id"]: row for row in rows}
    missing = [row_id for row_id in answers if row_id not in found]
    if missing or not answers:
        raise UserError(
            f"{evaluation.uri}: "
            + (f"row {missing[0]} is not in the dataset" if missing else "holds no prediction")
            + "; evaluate the model on this dataset again"
        )
    return [
        Probe(
            row_id=row_id,
            picture=found[row_id]["image"]["bytes"],
            text=answer.text,
            truth={name: found[row_id][name] for name in names},
            likelihood=_likelihood(answer),
        )
        for row_id, answer in answers.items()
    ]


def _likelihood(answer: Answer) -> float | None:
    """Return the probability of the answer's fields; None where one has no score."""
    if answer.fields is None or answer.scores is None or answer.scores.keys() != answer.fields.keys():
        return None
    return math.exp(sum(answer.scores.values()))


def most_that_differ(likelihoods: Iterable[float | None]) -> int:
    """Return how many answers may differ from the evaluation's where both compute in 16 bits.

    The other pictures of a batch change the rounding, and so the logits a little. Sampling adds noise of
    Gumbel's distribution to the logits: at temperature 1, it changes an answer with the probability that the
    evaluation did not give it. The noise of 16-bit rounding is smaller. Logits of 16 to 32 are an eighth
    apart in bfloat16, so a difference of two logits is off by about 0.3. That is less than the 0.45 of
    sampling at a temperature of 1/4, which raises an answer's odds to their fourth power or more. This bounds
    the chance of each answer to differ. A correct model exceeds the number returned at most once in 1,000
    deployments. An answer that could not be parsed may always differ.

    Args:
        likelihoods: the evaluation's, of each answer; None where it could not be parsed.
    """
    counts = np.ones(1)  # the probabilities of 0, 1, 2, … that differ
    for likelihood in likelihoods:
        sure, unsure = (likelihood or 0.0) ** _COLDER, (1 - (likelihood or 0.0)) ** _COLDER
        chance = unsure / (sure + unsure)
        counts = np.convolve(counts, [1 - chance, chance])
    at_least = counts[::-1].cumsum()[::-1]
    return int(np.flatnonzero(at_least > _RISK)[-1])


def verify(
    client: httpx.Client,
    probes: Sequence[Probe],
    expected: Expectation,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Ask about every picture over V1, in batches, and over OpenAI's chat, one by one; compare the answers.

    Args:
        client: with the server's address as its base URL, and a timeout.
        probes: at least one.
        expected: what the server must answer; in float32, every text must be exactly the evaluation's.
        progress: called with (done, total) pictures.
    """
    try:
        predicted = _predict(client, probes, expected)
        chatted = []
        for number, probe in enumerate(probes, start=1):
            chatted.append(_chat(client, probe, expected))
            if progress is not None:
                progress(number, len(probes))
    except httpx.HTTPStatusError as error:
        response = error.response
        return Verification(
            False, f"{error.request.url.path} answered {response.status_code}: {response.text:.300}"
        )
    except httpx.TransportError as error:
        return Verification(False, f"{error.request.url.path}: no answer ({error or type(error).__name__})")
    except (KeyError, TypeError, ValueError) as error:
        return Verification(False, f"the server's answer cannot be read ({type(error).__name__}: {error})")
    return _compare(probes, predicted, chatted, expected)


@dataclass(frozen=True)
class _Served:
    """An answer over one of the protocols."""

    protocol: str
    text: str
    fields: dict[str, FieldValue] | None
    model_digest: str
    task: dict[str, Any]
    confidence: dict[str, float | None] | None
    seconds: float


def _predict(client: httpx.Client, probes: Sequence[Probe], expected: Expectation) -> list[_Served]:
    answers = []
    for start in range(0, len(probes), _AT_ONCE):
        body = {
            "instances": [{"image": {"b64": probe.base64}} for probe in probes[start : start + _AT_ONCE]],
            "parameters": {"max_new_tokens": expected.max_new_tokens},
        }
        response, seconds = _post(client, PREDICT_PATH.format(name=expected.name), body)
        answers += [
            _Served(
                "V1",
                item["text"],
                item["fields"],
                item["model_digest"],
                item["task"],
                item.get("confidence"),
                seconds,
            )
            for item in response["predictions"]
        ]
    if len(answers) != len(probes):
        raise ValueError(f"{len(answers)} predictions for {len(probes)} pictures")
    return answers


def _chat(client: httpx.Client, probe: Probe, expected: Expectation) -> _Served:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{probe.base64}"}}
    question = {"type": "text", "text": expected.task.question}
    body = {
        "model": expected.name,
        "messages": [{"role": "user", "content": [picture, question]}],
        "max_completion_tokens": expected.max_new_tokens,
    }
    response, seconds = _post(client, CHAT_PATH, body)
    extra = response["fovea"]
    return _Served(
        "chat",
        response["choices"][0]["message"]["content"],
        extra["fields"],
        extra["model_digest"],
        extra["task"],
        extra.get("confidence"),
        seconds,
    )


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
    started = time.monotonic()
    response = client.post(path, json=body)
    response.raise_for_status()
    content: dict[str, Any] = response.json()
    return content, time.monotonic() - started


def _compare(
    probes: Sequence[Probe], predicted: list[_Served], chatted: list[_Served], expected: Expectation
) -> Verification:
    for answer in (*predicted, *chatted):
        stranger = _stranger(answer, expected)
        if stranger is not None:
            return Verification(False, stranger)
    for protocol in (predicted, chatted):
        other = _other_confidences(protocol, expected)
        if other is not None:
            return Verification(False, other)
    example = Example(
        row_id=probes[0].row_id,
        text=chatted[0].text,
        answer=chatted[0].fields,
        truth=probes[0].truth,
        latency_ms=round(chatted[0].seconds * 1000, 1),
    )
    differing = []
    for probe, *both in zip(probes, predicted, chatted, strict=True):
        wrong = [answer for answer in both if not _agrees(answer, probe, expected.task)]
        if wrong:
            differing.append((probe, wrong[0]))
    agreed = len(probes) - len(differing)
    slow = percentile([answer.seconds for answer in chatted])
    if slow > expected.max_answer_seconds:
        limit = f"{expected.max_answer_seconds:g} s are allowed"
        reason = f"answers take {slow:.1f} s (95th percentile of {len(chatted)}), {limit}"
        return Verification(False, reason, len(probes), agreed, example)
    reason = f"{agreed} of {len(probes)} held-out pictures answered over V1 and chat as in the evaluation"
    if differing:
        probe, answer = differing[0]
        reason += f"; of {probe.row_id} {answer.protocol} says {answer.text!r}, the evaluation {probe.text!r}"
    allowed = 0 if expected.dtype == "float32" else most_that_differ(probe.likelihood for probe in probes)
    return Verification(len(differing) <= allowed, reason, len(probes), agreed, example)


def percentile(seconds: Sequence[float], fraction: float = 0.95) -> float:
    """Return the value that ``fraction`` of the times do not exceed."""
    return sorted(seconds)[min(len(seconds) - 1, math.ceil(fraction * len(seconds)) - 1)]


def _stranger(answer: _Served, expected: Expectation) -> str | None:
    """Return why an answer is of another model or task than expected, or None."""
    task = {"name": expected.task.name, "version": expected.task.version}
    if answer.model_digest != expected.model_digest:
        return f"{answer.protocol} answers with model {answer.model_digest}, not {expected.model_digest}"
    if answer.task != task:
        return f"{answer.protocol} answers task {answer.task}, not {task}"
    return None


def _other_confidences(answers: Sequence[_Served], expected: Expectation) -> str | None:
    """Return how the fields with confidences differ from those that the evaluation calibrated, or None."""
    known = expected.calibration.known if expected.calibration else frozenset()
    if not any(answer.fields for answer in answers):
        return None
    given = {name for each in answers for name, sure in (each.confidence or {}).items() if sure is not None}
    if given == known:
        return None
    said, wanted = (", ".join(sorted(names)) or "no field" for names in (given, known))
    return f"the server gives confidences of {said}, the evaluation calibrated {wanted}"


def _agrees(answer: _Served, probe: Probe, task: Task) -> bool:
    return answer.text == probe.text and answer.fields == task.parse(probe.text).fields

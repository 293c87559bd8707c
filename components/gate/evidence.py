"""The gate's evidence: records and the outcomes of each row. Anything unreadable is recorded as such."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fovea.errors import UserError
from fovea.evaluation.outcomes import BASELINES, CHALLENGER, Outcomes, read_baselines
from fovea.predictions import fetch_predictions
from fovea.predictions import shuffled as shuffle
from fovea.records import (
    AbsentRecord,
    EvaluationRecord,
    Metrics,
    ModelRecord,
    R,
    Record,
    read_optional_record,
    read_record,
)
from fovea.storage import Storage
from fovea.task import Task
from fovea.text import plain_line

SHUFFLED = "shuffled"
"""The same, shown other products' pictures."""
BASE_SHUFFLED = "base:shuffled"
"""The base, shown other products' pictures."""

T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """The evidence on a model. What could not be read is None, and ``unreadable`` says why."""

    challenger: EvaluationRecord | None
    base: EvaluationRecord | None
    champion: EvaluationRecord | AbsentRecord | None
    """An AbsentRecord where there is no champion."""
    model_digest: str | None
    """The model that would be deployed."""
    base_digest: str | None
    """The model it was tuned from."""
    outcomes: Mapping[str, Outcomes] = field(default_factory=dict)
    """Outcomes by name: of `CHALLENGER`, `SHUFFLED`, ``base``, ``champion`` and ``baseline:…``."""
    unreadable: tuple[str, ...] = ()

    def record(self, name: str) -> EvaluationRecord | None:
        """Return the evaluation with the figures of a model or baseline."""
        if name in (CHALLENGER, SHUFFLED):
            return self.challenger
        if name == "champion":
            return self.champion if isinstance(self.champion, EvaluationRecord) else None
        return self.base

    def metrics(self, name: str) -> Metrics | None:
        """Return the recorded figures of a model or baseline."""
        record = self.record(name)
        if record is None:
            return None
        if name == SHUFFLED:
            return record.shuffled
        kind, _, baseline = name.partition(":")
        return record.baselines.get(baseline) if kind == "baseline" else record.metrics


class RefusedError(Exception):
    """A rule cannot be evaluated, and so it refuses; the message says why."""


def outcomes_of(evidence: Evidence, who: str) -> Outcomes:
    """Return the outcomes of a model or baseline; refuse where there are none."""
    found = evidence.outcomes.get(who)
    if found is None or not len(found):
        raise RefusedError(f"there are no predictions{'' if who == CHALLENGER else f' of {who}'}")
    return found


def finite(value: object, what: str) -> float:
    """Return a figure; refuse one that is not finite. ``what`` names it in the reason."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RefusedError(f"{what} is not a finite number")
    return float(value)


def gather(
    *, base: str | Path, challenger: str | Path, champion: str | Path, model: str | Path, storage: Storage
) -> tuple[Evidence, ModelRecord | None, dict[str, Record]]:
    """Read the records from files, and the outcomes from S3, whose digests are checked.

    Returns:
        The evidence; the model's record; and the records that could be read, by name.
    """
    reading = _Reading(storage)
    record = reading.record(model, ModelRecord, "model")
    of_base = reading.record(base, EvaluationRecord, "evaluation of the base")
    of_challenger = reading.record(challenger, EvaluationRecord, "evaluation of the model")
    of_champion = reading.optional(champion, "evaluation of the champion")
    found = {"model": record, "base": of_base, "challenger": of_challenger, "champion": of_champion}
    outcomes = reading.outcomes(record.task if record else None, of_base, of_challenger, of_champion)
    evidence = Evidence(
        challenger=of_challenger,
        base=of_base,
        champion=of_champion,
        model_digest=record.digest if record else None,
        base_digest=record.base.digest if record and record.base else None,
        outcomes=outcomes,
        unreadable=tuple(reading.unreadable),
    )
    return evidence, record, {name: each for name, each in found.items() if isinstance(each, Record)}


class _Reading:
    """Reads the evidence, and keeps a line about each thing that cannot be read."""

    def __init__(self, storage: Storage) -> None:
        self.unreadable: list[str] = []
        self._storage = storage

    def record(self, path: str | Path, kind: type[R], what: str) -> R | None:
        return self._read(what, lambda: read_record(path, kind))

    def optional(self, path: str | Path, what: str) -> EvaluationRecord | AbsentRecord | None:
        return self._read(what, lambda: read_optional_record(path, EvaluationRecord))

    def outcomes(
        self,
        task: Task | None,
        base: EvaluationRecord | None,
        challenger: EvaluationRecord | None,
        champion: EvaluationRecord | AbsentRecord | None,
    ) -> Mapping[str, Outcomes]:
        if task is None:
            self._complain("model", "its record names no task, so no prediction can be read")
            return {}
        found: dict[str, Outcomes | None] = {}
        for name, record in ((CHALLENGER, challenger), ("base", base), ("champion", champion)):
            if isinstance(record, EvaluationRecord):
                found[name] = self._predictions(record, task, name)
        for name, record in ((SHUFFLED, challenger), (BASE_SHUFFLED, base)):
            if record is not None and record.shuffled is not None:
                found[name] = self._predictions(record, task, name, shuffled=True)
        if base is not None:
            folder = self._read("baselines", lambda: self._storage.download(base, pattern=BASELINES))
            read = folder and self._read("baselines", lambda: read_baselines(folder / BASELINES, task))
            found |= {f"baseline:{name}": outcomes for name, outcomes in (read or {}).items()}
        return {name: outcomes for name, outcomes in found.items() if outcomes is not None}

    def _predictions(
        self, record: EvaluationRecord, task: Task, name: str, *, shuffled: bool = False
    ) -> Outcomes | None:
        def read() -> Outcomes:
            if record.task_digest != task.digest:
                raise UserError(
                    f"are of another task ({record.task_digest[:19]}) than the model's, {task.name} "
                    f"{task.version} ({task.digest[:19]})"
                )
            predictions = fetch_predictions(self._storage, record, task)
            return Outcomes.of_predictions(task, shuffle(predictions) if shuffled else predictions)

        return self._read(f"predictions of {name}", read)

    def _read(self, what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (UserError, ValueError, KeyError) as error:  # ValueError: bytes that are not text
            self._complain(what, str(error))
            return None

    def _complain(self, what: str, why: str) -> None:
        self.unreadable.append(plain_line(f"{what}: {why}", length=300))

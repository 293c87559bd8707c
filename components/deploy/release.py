"""A release: the model to deploy, with the records of where it comes from and that it may be deployed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from components.deploy.verification import Expectation
from fovea.evaluation.calibration import Calibration
from fovea.records import DatasetRecord, Decision, EvaluationRecord, ModelRecord, Record, read_record
from fovea.storage import Storage, index_uri
from fovea.task import Task

_TYPES: Mapping[str, type[Record]] = {
    "model": ModelRecord,
    "evaluation": EvaluationRecord,
    "dataset": DatasetRecord,
    "decision": Decision,
}


@dataclass(frozen=True)
class Release:
    """A model to deploy, with its records.

    Args:
        model: the model.
        evaluation: its evaluation, whose answers the served model must give.
        dataset: what it was evaluated on.
        decision: the gate's decision on it.
        artifact_root: ``s3://bucket/prefix`` of the records.
        decided_at: when it was decided to deploy it; None for when the gate decided.
    """

    model: ModelRecord
    evaluation: EvaluationRecord
    dataset: DatasetRecord
    decision: Decision
    artifact_root: str
    decided_at: datetime | None = None

    @classmethod
    def from_files(cls, paths: Mapping[str, str | Path], artifact_root: str) -> "Release":
        """Read the four records, by name, from files.

        Raises:
            UserError: a record cannot be read, or is of another kind.
        """
        records = {name: read_record(paths[name], kind) for name, kind in _TYPES.items()}
        return cls(**records, artifact_root=artifact_root)  # type: ignore[arg-type]

    @classmethod
    def from_index(
        cls, uris: Mapping[str, str], artifact_root: str, storage: Storage, decided_at: datetime
    ) -> "Release":
        """Read the four records from the URIs that `record_uris` gave for an earlier deployment.

        Raises:
            UserError: a record is gone, or is of another kind.
        """
        records = {
            name: kind.from_json(storage.read_bytes(uris[name]), source=uris[name])
            for name, kind in _TYPES.items()
        }
        return cls(**records, artifact_root=artifact_root, decided_at=decided_at)  # type: ignore[arg-type]

    @property
    def record_uris(self) -> dict[str, str]:
        """URIs of the records in the index, by name."""
        records: Mapping[str, Record] = {name: getattr(self, name) for name in _TYPES}
        return {
            name: index_uri(self.artifact_root, record.step, record.input_key)
            for name, record in records.items()
        }

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of the confidences; None where no field could be calibrated."""
        found = self.evaluation.calibration
        return None if found is None or found.is_empty else found

    @property
    def calibration_uri(self) -> str:
        """Where the server reads the calibration: the evaluation's record; empty where there is none."""
        return self.record_uris["evaluation"] if self.calibration else ""

    @property
    def task(self) -> Task:
        """What the model is asked."""
        return self.model.task or self.dataset.task

    def expectation(self, service_name: str, max_answer_seconds: float = math.inf) -> Expectation:
        """Return what a server of this release must answer.

        Args:
            service_name: the name that callers ask for the model by.
            max_answer_seconds: limit of the 95th percentile of the time that an answer takes.
        """
        generation = self.evaluation.generation
        return Expectation(
            name=service_name,
            model_digest=self.model.digest,
            task=self.task,
            max_new_tokens=generation.max_new_tokens,
            dtype=generation.dtype,
            max_answer_seconds=max_answer_seconds,
            calibration=self.calibration,
        )

    def refusal(self) -> str | None:
        """Return why the release may not be deployed, or None: the gate passed it and the records match."""
        model, evaluation, decision = self.model, self.evaluation, self.decision
        checks = (
            (decision.passed, f"the gate refused the model: {decision.reason}"),
            (decision.model_digest == model.digest, "the decision is on another model"),
            (evaluation.model_digest == model.digest, "the evaluation is of another model"),
            (evaluation.digest in decision.parents.values(), "the decision rests on another evaluation"),
            (evaluation.dataset_digest == self.dataset.digest, "the evaluation used another dataset"),
            (evaluation.task_digest == self.task.digest, self._task_difference()),
            (evaluation.generation.num_crops == model.num_crops, "the evaluation used other num_crops"),
        )
        return next((reason for holds, reason in checks if not holds), None)

    def _task_difference(self) -> str:
        """Say how the task that was evaluated differs from the model's."""
        evaluated = self.evaluation.task_digest
        if evaluated == self.dataset.task.digest:
            return f"the evaluation asked another task: {self.task.difference(self.dataset.task)}"
        return f"the evaluation asked another task: {evaluated[:19]} there, {self.task.digest[:19]} here"

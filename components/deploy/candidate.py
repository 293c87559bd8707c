"""A model to deploy, and the records that speak for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
class Candidate:
    """A model to deploy, and what speaks for it."""

    model: ModelRecord
    evaluation: EvaluationRecord
    dataset: DatasetRecord
    decision: Decision

    @classmethod
    def from_files(cls, paths: Mapping[str, str | Path]) -> "Candidate":
        """Read the four records, by name, from files.

        Raises:
            UserError: one cannot be read, or is of another kind.
        """
        return cls(**{name: read_record(paths[name], kind) for name, kind in _TYPES.items()})  # type: ignore[arg-type]

    @classmethod
    def from_index(cls, uris: Mapping[str, str], storage: Storage) -> "Candidate":
        """Read the four records from where `record_uris` says they are.

        Raises:
            UserError: one is not there any more, or is of another kind.
        """
        records = {
            name: kind.from_json(storage.read_bytes(uris[name]), source=uris[name])
            for name, kind in _TYPES.items()
        }
        return cls(**records)  # type: ignore[arg-type]

    def record_uris(self, artifact_root: str) -> dict[str, str]:
        """Return where the records lie in the index, by name."""
        records: Mapping[str, Record] = {name: getattr(self, name) for name in _TYPES}
        return {
            name: index_uri(artifact_root, record.step, record.input_key) for name, record in records.items()
        }

    def calibration_uri(self, artifact_root: str) -> str:
        """Return where what confidences come from lies, which is the evaluation's record; empty for none."""
        return self.record_uris(artifact_root)["evaluation"] if self.calibration else ""

    @property
    def calibration(self) -> Calibration | None:
        """What confidences come from; None where no field could be calibrated."""
        found = self.evaluation.calibration
        return None if found is None or found.is_empty else found

    @property
    def task(self) -> Task:
        """What the model is asked."""
        return self.model.task or self.dataset.task

    def refusal(self) -> str | None:
        """Return why the model may not be deployed, or None. The records must all speak of one another."""
        model, evaluation, decision = self.model, self.evaluation, self.decision
        checks = (
            (decision.passed, f"the gate refused the model: {decision.reason}"),
            (decision.model_digest == model.digest, "the decision is on another model"),
            (evaluation.model_digest == model.digest, "the evaluation is of another model"),
            (evaluation.digest in decision.parents.values(), "the decision rests on another evaluation"),
            (evaluation.dataset_digest == self.dataset.digest, "the evaluation used another dataset"),
            (evaluation.task_digest == self.task.digest, self._other_task()),
            (evaluation.generation.num_crops == model.num_crops, "the evaluation used other num_crops"),
        )
        return next((reason for holds, reason in checks if not holds), None)

    def _other_task(self) -> str:
        """Say how the task that was evaluated differs from the model's."""
        evaluated = self.evaluation.task_digest
        if evaluated == self.dataset.task.digest:
            return f"the evaluation asked another task: {self.task.difference(self.dataset.task)}"
        return f"the evaluation asked another task: {evaluated[:19]} there, {self.task.digest[:19]} here"

"""The record of an evaluation, as a server is given it."""

from typing import Any

from fovea.calibration import Calibration
from fovea.records import EvaluationRecord, GenerationParameters, now
from fovea.task import Task
from tests.serving.in_process import CALIBRATION, DIGEST
from tests.some_metrics import some_metrics


def evaluation(task: Task, calibration: Calibration | None = CALIBRATION, num_crops: int = 4) -> Any:
    """The record of an evaluation that found this calibration."""
    return EvaluationRecord(
        step="evaluate",
        step_version=1,
        input_key="0" * 64,
        uri="",
        files=(),
        parameters={},
        parents={},
        created_at=now(),
        run_id="run",
        model_digest=DIGEST,
        dataset_digest=DIGEST,
        task_digest=task.digest,
        split="test",
        generation=GenerationParameters(max_new_tokens=64, num_crops=num_crops, dtype="float32"),
        metrics=some_metrics(),
        shuffled=None,
        calibration=calibration,
    )

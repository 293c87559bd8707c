"""What all protocols return with an answer: its task, its fields and their confidences."""

from collections.abc import Mapping

from fovea.evaluation.calibration import Calibration
from fovea.task import Answer
from serving.engine.model import ServedModel
from serving.errors import RequestError
from serving.protocols.schemas import Confidences, FieldValues, TaskName


def task_name(served: ServedModel) -> TaskName:
    """Return which task the fields of answers belong to."""
    task = served.predictor.task
    return TaskName(name=task.name, version=task.version)


def confidences(calibration: Calibration | None, answer: Answer) -> Confidences | None:
    """Return the confidence of each field, None where it is not known; None altogether without calibration.

    Args:
        calibration: of the model, for the question that was asked.
        answer: one that may not follow the task, and then has no confidences.
    """
    if calibration is None or answer.fields is None:
        return None
    return calibration.confidences(answer.scores)


def check_confidence(calibration: Calibration | None, min_confidence: float) -> None:
    """Refuse ``min_confidence`` where the model gives no confidences, before anything is generated.

    Raises:
        RequestError: it is above 0, and the model was not calibrated for what is asked.
    """
    if min_confidence > 0 and calibration is None:
        raise RequestError(
            "min_confidence: this model gives no confidences for this question; leave it out",
            param="min_confidence",
        )


def fields_of(
    answer: Answer, sure: Mapping[str, float | None] | None, min_confidence: float
) -> FieldValues | None:
    """Return the fields, null where the confidence is below ``min_confidence`` or not known.

    Args:
        answer: the answer.
        sure: its confidences.
        min_confidence: 0 leaves all fields.
    """
    if answer.fields is None:
        return None
    if not min_confidence:
        return dict(answer.fields)
    known = {name: value or 0.0 for name, value in (sure or {}).items()}
    return {
        name: value if known.get(name, 0.0) >= min_confidence else None
        for name, value in answer.fields.items()
    }

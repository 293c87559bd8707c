"""What every protocol says of an answer: its fields, and those left out that the model is not sure of."""

from fovea.inference import Answer
from serving.errors import RequestError
from serving.schemas import FieldValues


def confidences(answer: Answer) -> dict[str, float] | None:
    """Return how sure the model is of each field; None where that is not known."""
    return None


def check_confidence(min_confidence: float) -> None:
    """Refuse a least confidence where there are none to hold against it, before anything is generated.

    Raises:
        RequestError: it is above 0, and the model was not calibrated.
    """
    if min_confidence > 0:
        raise RequestError(
            "min_confidence: this model gives no confidences; leave it out", param="min_confidence"
        )


def fields_of(answer: Answer, min_confidence: float) -> FieldValues | None:
    """Return the fields, null where the confidence is below ``min_confidence``."""
    if answer.fields is None:
        return None
    sure = confidences(answer) or {}
    return {
        name: value if sure.get(name, 1.0) >= min_confidence else None
        for name, value in answer.fields.items()
    }

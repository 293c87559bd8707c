"""What every protocol says of an answer: its fields, and those left out that the model is not sure of."""

from fovea.inference import Answer
from serving.errors import RequestError
from serving.schemas import FieldValues


def confidences(answer: Answer) -> dict[str, float] | None:
    """Return how sure the model is of each field; None where that is not known."""
    return None


def fields_of(answer: Answer, min_confidence: float) -> FieldValues | None:
    """Return the fields, null where the confidence is below ``min_confidence``.

    Raises:
        RequestError: a confidence is asked for, and this model has none.
    """
    if answer.fields is None:
        return None
    known = confidences(answer)
    if min_confidence > 0 and known is None:
        raise RequestError(
            "min_confidence: this model gives no confidences; leave it out", param="min_confidence"
        )
    sure = known or {}
    return {
        name: value if sure.get(name, 1.0) >= min_confidence else None
        for name, value in answer.fields.items()
    }

"""Figures and records that mean nothing, for tests of what carries them."""

from typing import Any

from fovea.records import EvaluationRecord, GenerationParameters, Metrics, now

SOME_DIGEST = "sha256:" + "0" * 64


def some_metrics(samples: int = 300, groups: int = 280, intervals: Any = None, **figures: float) -> Metrics:
    """Return `Metrics` with ``figures``, and something in all the others."""
    others = {
        "parse_rate": 1.0,
        "product.exact": 0.5,
        "product.f1": 0.7,
        "category.accuracy": 0.5,
        "category.macro_f1": 0.4,
        "full_price.median_ape": 0.1,
        "full_price.mean_ape": 0.2,
        "full_price.within_10_percent": 0.5,
        "full_price.mean_absolute_error": 12.5,
    }
    return Metrics(samples=samples, groups=groups, figures={**others, **figures}, intervals=intervals or {})


def made_by(step: str) -> dict[str, Any]:
    """Return what every record says of how it was made, of one without a payload."""
    return {
        "step": step,
        "step_version": 1,
        "input_key": "0" * 64,
        "uri": "",
        "files": (),
        "parameters": {},
        "parents": {},
        "created_at": now(),
        "run_id": "run",
    }


def some_evaluation(**fields: Any) -> EvaluationRecord:
    """Return an `EvaluationRecord` with ``fields``, and something in all the others that it must have."""
    others = {
        **made_by("evaluate"),
        "model_digest": SOME_DIGEST,
        "dataset_digest": SOME_DIGEST,
        "task_digest": SOME_DIGEST,
        "split": "test",
        "generation": GenerationParameters(max_new_tokens=64, num_crops=4, dtype="float32"),
        "metrics": some_metrics(),
        "shuffled": None,
    }
    return EvaluationRecord(**{**others, **fields})

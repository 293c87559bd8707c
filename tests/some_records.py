"""Figures and records that mean nothing, for tests of what carries them."""

from typing import Any

from fovea.records import EvaluationRecord, GenerationParameters, Metrics, now

SOME_DIGEST = "sha256:" + "0" * 64


def some_metrics(**figures: Any) -> Metrics:
    """Return `Metrics` with ``figures``, and something in all the others."""
    others = {
        "samples": 300,
        "groups": 280,
        "parse_rate": 1.0,
        "title_exact": 0.5,
        "title_f1": 0.7,
        "category_accuracy": 0.5,
        "category_macro_f1": 0.4,
        "price_median_ape": 0.1,
        "price_mean_ape": 0.2,
        "price_within_10_percent": 0.5,
        "price_mean_absolute_error": 12.5,
    }
    return Metrics(**{**others, **figures})


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

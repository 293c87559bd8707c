"""Figures that mean nothing, for tests of what carries them."""

from typing import Any

from fovea.records import Metrics


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

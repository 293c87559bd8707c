"""Evaluation of answers: outcomes, metrics, intervals, calibration and how figures are printed."""

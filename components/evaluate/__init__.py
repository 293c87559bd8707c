"""Evaluates a model on a split of a dataset, by free generation."""

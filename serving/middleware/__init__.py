"""Middleware of every request: keys, limits, the log and the metrics."""

"""What every request passes: keys, limits, the log and the metrics."""

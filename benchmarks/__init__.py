"""Measure speed and memory: each module with a `main` is a command that prints a table."""

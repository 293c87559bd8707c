"""The tasks around every run's steps: preflight before them, and the outcome after them."""

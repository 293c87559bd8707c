"""The tasks before and after the steps of every run: preflight, require and report_outcome."""

"""The report of an evaluation: a page with figures, plots and examples."""

"""The dataset's report and card, and the preview of a table before a run."""

"""The results of a run: its summary, as text and as a page."""

"""What frames a run: checks before it costs money, the refusal that fails it, and how it ended."""

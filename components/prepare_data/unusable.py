"""Why a row is left out."""


class UnusableError(Exception):
    """A row, or a value of it, cannot be used; ``reason`` is a word or a few, joined by underscores."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

"""Errors that the library raises on purpose."""


class UserError(Exception):
    """An error that the user can correct; its message is one line: what, where, and what to do."""


class UnusableError(Exception):
    """A row of a table, or one of its values, cannot be used.

    ``reason`` is a few words joined by underscores.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

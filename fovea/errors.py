"""The exception that is shown to users without a traceback."""


class UserError(Exception):
    """An error that a user or operator can fix: the message says what is wrong, where, and what to do."""

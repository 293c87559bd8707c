"""The one exception that is shown to people without a traceback."""


class UserError(Exception):
    """Something a user or operator can mend: its message says what is wrong, where, and what to do."""

"""Progress of long operations as log lines, for pods and terminals."""

import logging
import time

_INTERVAL = 5.0
_FIRST = 2.0


class Progress:
    """Logs the progress of a loop: first after two seconds, then every five, and at its end.

    Loops of less than two seconds log nothing. Call it with (done, total) as often as you like.
    """

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._logger = logger
        self._what = what
        self._start = time.monotonic()
        self._next = self._start + _FIRST
        self._spoke = False

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report that ``done`` of ``total`` are finished; ``note`` is appended to the line."""
        now = time.monotonic()
        finished = done >= total and self._spoke
        if now < self._next and not finished:
            return
        self._next = now + _INTERVAL
        self._spoke = True
        elapsed = now - self._start
        left = f", {elapsed / done * (total - done):.0f} s left" if 0 < done < total else ""
        self._logger.info(
            "%s: %d of %d (%.0f s%s)%s", self._what, done, total, elapsed, left, f" {note}" if note else ""
        )

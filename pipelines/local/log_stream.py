"""Reads the output of kfp.local: shows the lines of each task, and finds the reason of a failure.

kfp.local mixes its own log, its executor's log, and the indented output of the tasks, including tracebacks.
All of it is written to a log file; the user sees only the tasks' own lines.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TextIO

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"^[\d:.]+ - INFO - Executing task '([^']+)'$")
_ENDED = re.compile(r"^[\d:.]+ - (?:INFO|ERROR) - Task '([^']+)' finished with status (\w+)$")
_SPOKEN = re.compile(r"^ {4}(?:\[KFP Executor [^\]]*\]: )?([a-z][a-z0-9_]*: .*)$")
_RAISED = re.compile(r"^ {4}([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Interrupted|Exit))(?:: (.*))?$")

_SILENCE_SECONDS = 5.0


@dataclass
class Stream:
    """Reads the output line by line, and stores what kfp's error does not include."""

    show: Callable[[str], None]
    log: TextIO
    failed: str = ""
    """The first task that failed."""
    error: str = ""
    """The last line of that task's traceback, without the exception's type."""
    silence: float = _SILENCE_SECONDS
    """A task without output is reported as running after this many seconds, and then less and less often."""
    _task: str = ""
    _raised: str = ""
    _started: float = 0.0
    _spoke: float = 0.0
    _patience: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)

    def follow(self, lines: Iterable[str]) -> None:
        """Read ``lines`` to their end."""
        watcher = threading.Thread(target=self._break_silence, daemon=True)
        watcher.start()
        try:
            for line in lines:
                self.log.write(line)
                self.log.flush()
                self._read(_COLOUR.sub("", line.rstrip("\n")))
        finally:
            self._ended.set()
            watcher.join()

    def _read(self, line: str) -> None:
        if started := _STARTED.match(line):
            # kfp numbers the second use of a component in the graph: evaluate-2.
            self._task, self._raised = re.sub(r"-\d+$", "", started[1]).replace("-", "_"), ""
            self._started = self._spoke = time.monotonic()
            self._patience = self.silence
        elif ended := _ENDED.match(line):
            if ended[2] != "SUCCESS" and not self.failed:
                self.failed, self.error = self._task, self._raised
            self._task = ""
        elif not self._task:
            return
        elif raised := _RAISED.match(line):
            self._raised = raised[2] or raised[1]
        elif spoken := _SPOKEN.match(line):
            self._spoke, self._patience = time.monotonic(), self.silence
            # A component that is used twice logs a more precise name than kfp's.
            name = spoken[1].partition(":")[0]
            self._task = name if name.startswith(self._task) else self._task
            self.show(spoken[1])

    def _break_silence(self) -> None:
        while not self._ended.wait(self.silence / 5):
            task, now = self._task, time.monotonic()
            if task and now - self._spoke >= self._patience:
                self._patience = 2 * (now - self._spoke)
                self.show(f"{task}: at work ({now - self._started:.0f} s)")

"""Progress of a command: bars on a terminal, lines in a log."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[str, int, int], None]
"""Function that takes the name of a stage, the amount done, and the total."""


@contextmanager
def showing_progress() -> Iterator[Show]:
    """Yield a function that shows the progress of each stage of a command on standard error."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, TaskID, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from fovea.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        logger = logging.getLogger("fovea")
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logger.setLevel(logging.INFO)
        lines: dict[str, Progress] = {}
        yield lambda what, done, total: lines.setdefault(what, Progress(logger, what))(done, total)
        return
    columns = (*Bars.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        stages: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in stages:
                stages[what] = bars.add_task(what.capitalize(), total=total)
            bars.update(stages[what], completed=done)

        yield show

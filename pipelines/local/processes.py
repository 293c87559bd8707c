"""Child processes that are stopped together with all of their descendants."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

import psutil  # type: ignore[import-untyped]

_GRACE_SECONDS = 15.0


@contextmanager
def ending_with_block(
    command: Sequence[str], environment: dict[str, str]
) -> Iterator["subprocess.Popen[str]"]:
    """Start a process and read its output by line; after the block it and all its descendants have stopped.

    It gets a new session, so that only this process receives Ctrl-C from the terminal, and a pipe as its
    standard input, which closes if this process dies.
    """
    with subprocess.Popen(  # noqa: S603
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with _undisturbed():
                end_family(process.pid)
                process.wait()


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and SIGHUP interrupt the block like Ctrl-C, and Ctrl-C also if a shell had it ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling(interrupt):
        yield


def _undisturbed() -> AbstractContextManager[None]:
    """Postpone signals that would interrupt the cleanup, which takes seconds at most."""
    return _handling(signal.SIG_IGN)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def end_family(pid: int) -> None:
    """Terminate a process and its descendants, and kill those that are still running after some seconds.

    The process must have started a session, which identifies orphaned descendants.
    """
    asked: set[psutil.Process] = set()
    deadline = time.monotonic() + _GRACE_SECONDS
    while family := _family(pid, asked):
        force = time.monotonic() > deadline
        for process in family - (set() if force else asked):
            try:
                process.send_signal(signal.SIGKILL if force else signal.SIGTERM)
            except psutil.NoSuchProcess:
                continue
        asked |= family
        time.sleep(0.05)


def _family(pid: int, known: set[psutil.Process]) -> set[psutil.Process]:
    """Return the living members of the session of ``pid``, those in ``known``, and their children."""
    members = set(known)
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid:
                members.add(process)
        except ProcessLookupError:
            continue
    for process in list(members):
        try:
            members.update(process.children(recursive=True))
        except psutil.NoSuchProcess:
            continue
    return {process for process in members if _lives(process)}


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False

"""Seconds and bytes of a piece of work."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch

_PROCESS = Path("/proc/self")


def median_seconds(works: Sequence[Callable[[], object]], device: str, repetitions: int) -> list[float]:
    """The median time of each, over repetitions in turn, after one that does not count.

    In turn, so that what slows the machine down for a while slows all of them down.
    """
    seconds: list[list[float]] = [[] for _ in works]
    for repetition in range(repetitions + 1):
        for work, taken in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            _wait(device)
            if repetition:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def added_bytes(work: Callable[[], object], device: str) -> int:
    """The most memory that a piece of work held at any time, beside what was held before it.

    On a GPU, what PyTorch has allocated. On a CPU, resident memory: the process must be a fresh one, since
    memory that earlier work has freed may still be resident and would be used again unseen. Linux only.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    # Start the kernel's high-water mark anew: what building the model took for a moment is not the work's.
    (_PROCESS / "clear_refs").write_text("5")
    before = peak_resident_bytes()
    work()
    return peak_resident_bytes() - before


def peak_resident_bytes() -> int:
    """The most memory that was ever resident in this process, mapped files among it.

    Not `ru_maxrss`: that also holds the peak of the process that started this one. Linux only.
    """
    return _status_bytes("VmHWM")


class PrivatePeak:
    """The most memory that a process cannot do without: what is resident and no page of a mapped file.

    Looked at fifty times a second while the block runs, so that a shorter peak may go unseen. Linux only.
    """

    bytes = 0

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self.bytes = max(self.bytes, _status_bytes("RssAnon"))


def _status_bytes(name: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

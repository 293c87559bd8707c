"""Measure the time and memory of a function."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch

_PROCESS = Path("/proc/self")


def median_seconds(works: Sequence[Callable[[], object]], device: str, repetitions: int) -> list[float]:
    """Return the median time of each function, over alternating repetitions after a warm-up.

    They alternate so that a temporary slowdown of the machine affects all of them.
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
    """Return the peak memory of a function, in addition to the memory used before.

    On a GPU, this is the memory allocated by PyTorch. On a CPU, it is resident memory of a new process,
    because freed memory of earlier work may still be resident and be reused unnoticed. Linux only.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    # Reset the kernel's high-water mark, to exclude the peak of building the model.
    (_PROCESS / "clear_refs").write_text("5")
    before = peak_resident_bytes()
    work()
    return peak_resident_bytes() - before


def peak_resident_bytes() -> int:
    """Return the peak of the process's resident memory, including mapped files.

    Not `ru_maxrss`, which includes the peak of the parent process. Linux only.
    """
    return _status_bytes("VmHWM")


class PrivatePeak:
    """The peak of private memory: resident memory without the pages of mapped files.

    It is sampled fifty times per second while the block runs, so shorter peaks may be missed. Linux only.
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

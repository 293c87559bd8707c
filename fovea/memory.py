"""Control how glibc keeps and returns freed memory. Without glibc, both functions do nothing."""

import ctypes
import sys

# The parameters of mallopt() in glibc's malloc.h. The mmap threshold is limited to 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


def reuse_freed_memory(keep: int = 128 << 20) -> None:
    """Keep freed memory for later allocations of this process, instead of returning it to the system.

    By default glibc returns every large block, and the system clears each page when it is allocated again. On
    a virtual machine that can take longer than the computation on a tensor.

    Args:
        keep: Maximum number of bytes to keep at the end of the heap.
    """
    libc = _libc()
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, keep)


def return_freed_memory() -> None:
    """Return the freed memory that glibc has kept to the system."""
    libc = _libc()
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None

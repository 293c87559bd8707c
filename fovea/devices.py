"""Find out whether this machine has a GPU, if possible without loading torch."""

import sys
from pathlib import Path

# Device files of NVIDIA, its embedded boards, WSL and AMD.
_GPUS = ("nvidia*", "nvhost*", "dxg", "kfd")


def has_gpu() -> bool:
    """Return whether torch finds a GPU; torch, which loads slowly, is imported only if there may be one."""
    if sys.platform == "linux" and not any(next(Path("/dev").glob(name), None) for name in _GPUS):
        return False
    import torch

    return torch.cuda.is_available()

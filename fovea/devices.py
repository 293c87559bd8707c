"""What this machine computes on, told without loading torch where that can be."""

import sys
from pathlib import Path

# NVIDIA's, those of its small boards, WSL's, AMD's.
_GPUS = ("nvidia*", "nvhost*", "dxg", "kfd")


def has_gpu() -> bool:
    """Return whether torch finds a GPU; torch takes seconds to load, and is not asked where there is none."""
    if sys.platform == "linux" and not any(next(Path("/dev").glob(name), None) for name in _GPUS):
        return False
    import torch

    return torch.cuda.is_available()

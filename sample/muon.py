"""Muon, an optimizer for the matrices inside a network, in the parameters' own dtype.

`torch.optim.Muon` orthogonalises in bfloat16, which CPUs without native bfloat16 emulate at a fraction of
their float32 speed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

# The quintic iteration of Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum SGD whose update of each matrix is replaced by the nearest semi-orthogonal matrix.

    The same update as `torch.optim.Muon` with Nesterov momentum and no weight decay. Matrices of one shape
    are orthogonalised in one batch.

    Args:
        matrices: Parameters of two dimensions.
        lr: Learning rate.
        momentum: Decay of the running mean of gradients, 0 to 1.
    """

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. ``closure`` must be None."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                self._update(parameters, rate, group["momentum"])

    def _update(self, parameters: Sequence[torch.nn.Parameter], rate: float, momentum: float) -> None:
        updates = []
        for parameter in parameters:
            gradient: Any = parameter.grad
            state = self.state[parameter]
            if "mean" not in state:
                state["mean"] = torch.zeros_like(parameter)
            state["mean"].lerp_(gradient, 1 - momentum)
            updates.append(gradient.lerp(state["mean"], momentum))
        for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
            parameter.add_(update, alpha=-rate)


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Return the semi-orthogonal matrices near ``matrices``, (n, rows, columns).

    Newton-Schulz: singular values come out between about 0.7 and 1.2, not exactly 1.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x

import pytest
import torch

from sample.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 24), (1, 16, 16)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = orthogonalise(matrices)
    assert made.shape == matrices.shape
    assert made.dtype == torch.float32
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_step_is_that_of_torch_muon_without_its_rounding() -> None:
    """torch.optim.Muon rounds to bfloat16, so updates agree to its three digits."""
    lot = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=lot) for shape in ((32, 96), (96, 32), (32, 96))]
    ours, theirs = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    optimizers = Muon(ours, lr=0.1), torch.optim.Muon(theirs, lr=0.1, momentum=0.95, weight_decay=0.0)
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=lot)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for start, one, other in zip(starts, ours, theirs, strict=True):
        moved = (one - start).norm()
        assert (one - other).norm() < 0.02 * moved


def test_a_parameter_without_gradient_stays() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    Muon([parameter], lr=0.1).step()
    assert torch.equal(parameter, torch.ones(2, 3))


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="no closure"):
        Muon([torch.nn.Parameter(torch.ones(2, 3))], lr=0.1).step(lambda: 0.0)

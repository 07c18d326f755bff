import numpy as np
import pytest
import torch

from data_prep.micro_world.muon import Muon, orthogonalised

JORDAN = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_vectors_stay_and_values_become_the_polynomials(shape, scale):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    a, b, c = JORDAN
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    found = orthogonalised(matrix, JORDAN, 5, 1e-7)
    np.testing.assert_allclose(found.numpy(), left @ np.diag(values) @ right, atol=2e-5)


def test_a_matrix_of_zeros_stays_one():
    assert orthogonalised(torch.zeros(3, 4), JORDAN, 5, 1e-7).abs().max() == 0


def test_steps_are_those_of_pytorchs_muon_within_its_bfloat16():
    start = torch.randn(12, 20, generator=torch.Generator().manual_seed(1))
    sides = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    ours = Muon(sides[:1], lr=0.01, weight_decay=0.1)
    theirs = torch.optim.Muon(sides[1:], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for number in range(5):
        gradient = torch.randn(12, 20, generator=torch.Generator().manual_seed(number + 2))
        for parameter, optimizer in zip(sides, (ours, theirs), strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (sides[0] - start).norm()
    assert (sides[0] - sides[1]).norm() < 0.01 * moved
    assert sides[0].dtype == torch.float32 and moved > 0.01


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="closure"):
        Muon([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, weight_decay=0.0).step(lambda: 0.0)

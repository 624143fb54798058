"""Toy densities of the benchmarks: draws agree with the stated density."""

import math

import pytest
import torch

from benchmarks.targets.toy_data import toys

SIDE, EDGE = 180, 6.0


SLOW = pytest.param("2 spirals", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [SLOW if name == "2 spirals" else name for name in toys()])
def test_density_of_draws(name):
    toy = toys()[name]
    cell = 2 * EDGE / SIDE
    line = torch.linspace(-EDGE + cell / 2, EDGE - cell / 2, SIDE, dtype=torch.float64)
    height = toy.log_prob(torch.cartesian_prod(line, line)).exp()
    assert height.sum().item() * cell**2 == pytest.approx(1, abs=2e-3)

    # Compare counts in 144 boxes of 15 x 15 cells with the density.
    count = 20_000
    x = toy.sample(count)
    assert x.shape == (count, 2)
    width = 15 * cell
    box = ((x + EDGE) / width).floor().long().clamp(0, 11)
    counts = torch.bincount(12 * box[:, 0] + box[:, 1], minlength=144).double()
    shares = height.reshape(12, 15, 12, 15).sum((1, 3)).flatten() * cell**2
    expected = count * shares / shares.sum()
    often = expected > 5
    chi = ((counts - expected)[often].square() / expected[often]).sum()
    free = int(often.sum())
    # Four deviations, and a margin for cells too coarse for the thinnest rings.
    assert chi < free + 4 * math.sqrt(2 * free) + 10


def test_entropies():
    found = {
        name: -toy.log_prob(toy.sample(4000)).mean().item()
        for name, toy in toys().items()
        if name in ("8 gaussians", "checkerboard")
    }
    assert found["checkerboard"] == pytest.approx(math.log(32), abs=1e-6)
    # Eight Gaussians hardly overlap.
    apart = math.log(8) + math.log(2 * math.pi * math.e * (0.5 / 1.414) ** 2)
    assert found["8 gaussians"] == pytest.approx(apart, abs=0.06)

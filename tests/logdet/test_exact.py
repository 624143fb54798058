"""Exact log-determinants: Sylvester's identity, batches in parts, memory."""

import subprocess
import sys

import pytest
import torch

from pyro_iresnet import Exact
from pyro_iresnet.logdet import exact as module
from pyro_iresnet.logdet.series import log_det_one_plus
from pyro_iresnet.operators import Chain, Dense, Diagonal, Linearization

from .. import zoo

HIDDEN = [(), (1,), (2,), (3,), (4,), (8, 2), (2, 8), (9, 3, 7), (3, 3), (4, 9, 2, 9)]


def of(g, x):
    return Exact()(g.linearize(x), lipschitz=g.lipschitz)


def dense(g, x):
    eye = torch.eye(x.shape[-1])
    return torch.linalg.slogdet(eye + g.linearize(x).as_matrix()).logabsdet


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("turns", [1, 2])
def test_digits_near_singular(size, turns):
    """A Jacobian -L in some directions: LU factors lose cond(I + J) digits, and no more."""
    torch.manual_seed(0)
    signs = torch.ones(size)
    signs[:turns] = -1
    q = torch.linalg.qr(torch.randn(300, size, size))[0]
    j = 0.999 * q @ signs.diag() @ q.mT
    single = j.float()
    expected = torch.linalg.slogdet(torch.eye(size) + single.double()).logabsdet
    error = (log_det_one_plus(single) - expected).abs().max()
    # (1 + L) / (1 - L) = 2,000 times the rounding.
    assert error < 2_000 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("hidden", HIDDEN)
def test_narrow_layers(hidden):
    g, x = zoo.dense(5, hidden), torch.randn(2, 3, 5, requires_grad=True)
    narrow = g.linearize(x).narrowed_matrix()
    assert narrow.shape == (2, 3, *[min(5, *hidden, 5)] * 2)
    torch.testing.assert_close(of(g, x), dense(g, x))
    parameters = [x, *g.parameters()]
    found = torch.autograd.grad(of(g, x).sum(), parameters, allow_unused=True)
    expected = torch.autograd.grad(dense(g, x).sum(), parameters, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        if b is None:
            assert a is None or (a == 0).all()
        else:
            torch.testing.assert_close(a, b)


def test_chain_without_leading_matrix():
    slopes = [torch.rand(4, 5), torch.rand(4, 2)]
    down, up = torch.randn(2, 5) / 5, torch.randn(5, 2) / 5
    chain = Chain((Diagonal(slopes[0]), Dense(down), Diagonal(slopes[1]), Dense(up)))
    j = Linearization(torch.zeros(4, 5), chain)
    expected = torch.linalg.slogdet(torch.eye(5) + j.as_matrix()).logabsdet
    torch.testing.assert_close(Exact()(j, lipschitz=0.9), expected)


@pytest.mark.parametrize("hidden", [(8,), (4, 9), (3,)])
def test_same_batch_in_parts(monkeypatch, hidden):
    g, x = zoo.dense(6, hidden), torch.randn(3, 7, 6, requires_grad=True)
    whole = of(g, x)
    (gradient,) = torch.autograd.grad(whole.sin().sum(), x)
    monkeypatch.setattr(module, "LARGEST", 6 * 9 * 4)
    parts = of(g, x)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.sin().sum(), x)[0], gradient)


PROGRAM = """
import re, resource, torch
from pathlib import Path
from pyro_iresnet import DenseContraction, ResidualBlock
block = ResidualBlock(DenseContraction(784, {hidden})).eval()
x = torch.randn({rows}, 784)
with torch.no_grad():
    logdet = block.forward_and_log_det(x)[1]
assert logdet.isfinite().all() and repr(block.logdet.evaluate) == "Exact()"
status = Path("/proc/self/status")
# Linux counts the memory of the process that started this one into ru_maxrss.
peak = status.exists() and re.search(r"VmHWM:\\s+(\\d+)", status.read_text())
print(peak[1] if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("hidden", [None, [1024, 1024]])
def test_memory_of_784_dimensions(hidden):
    program = PROGRAM.format(hidden=hidden, rows=60)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(run.stdout) * unit < 2**31

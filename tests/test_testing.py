"""Checks of ``pyro_iresnet.testing``: each names the promise that a broken object breaks."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from pyro_iresnet import (
    CayleyBlock,
    ConvContraction,
    DenseContraction,
    Exact,
    FixedPoint,
    ResidualBlock,
    Roulette,
    testing,
)
from pyro_iresnet.contractions import Contraction
from pyro_iresnet.coordinates import Asinh, DiagonalScale
from pyro_iresnet.errors import ArgumentError
from pyro_iresnet.inverse import solve
from pyro_iresnet.logdet import LogDet, PowerSeries
from pyro_iresnet.operators import Chain, Dense, Diagonal, Linearization

from . import zoo


class Sound(Contraction):
    """``0.9 sin(A x)`` with a rotation ``A``, whose bound acts."""

    def __init__(self):
        super().__init__()
        self.event_shape, self.context_dim, self.lipschitz = (3,), None, 0.9
        self.rotation = torch.nn.Parameter(torch.linalg.qr(torch.randn(3, 3))[0])
        self.bias = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x, context=None):
        return 0.9 * (x @ self.rotation.mT + self.bias).sin()

    def lipschitz_bound(self):
        return torch.tensor(0.9)

    def linearize(self, x, context=None):
        value, slopes = self.with_slopes(x)
        return Linearization(value, Chain((Dense(self.rotation), Diagonal(slopes))))

    def with_slopes(self, x):
        return self(x), 0.9 * (x @ self.rotation.mT + self.bias).cos()


class HalvedBound(Sound):
    def lipschitz_bound(self):
        return torch.tensor(0.45)


class LargeBound(Sound):
    def lipschitz_bound(self):
        return torch.tensor(1.5)


class Transposed(Sound):
    def linearize(self, x, context=None):
        value, slopes = self.with_slopes(x)
        return Linearization(value, Chain((Diagonal(slopes), Dense(self.rotation.mT))))


class WrongTrace(Sound):
    class Product(Chain):
        def trace(self, *arguments, **options):
            return 1 + Chain.trace(self, *arguments, **options)

    def linearize(self, x, context=None):
        value, slopes = self.with_slopes(x)
        return Linearization(value, self.Product((Dense(self.rotation), Diagonal(slopes))))


class OtherValue(Sound):
    def linearize(self, x, context=None):
        value, slopes = self.with_slopes(x)
        return Linearization(value + 1, Chain((Dense(self.rotation), Diagonal(slopes))))


class WritesInput(Sound):
    def forward(self, x, context=None):
        value = super().forward(x)
        x += 1
        return value


class WritesParameter(Sound):
    def forward(self, x, context=None):
        value = super().forward(x)
        # Below the accuracy of a comparison of values.
        self.bias.data += 1e-13
        return value


class DependsOnMode(Sound):
    def forward(self, x, context=None):
        return super().forward(x) + 0.1 * self.training


class MixesSamples(Sound):
    def forward(self, x, context=None):
        return super().forward(x - 0.5 * x.mean(0))


def points():
    return torch.randn(50, 3)


def test_sound_contraction():
    testing.check_contraction(Sound(), points())


@pytest.mark.parametrize(
    ("check", "kind", "message"),
    [
        (testing.check_lipschitz_bound, HalvedBound, "exceeds the proven"),
        (testing.check_lipschitz_bound, LargeBound, "exceeds the promised"),
        (testing.check_linearization, Transposed, "matrix of linearize differs from automatic"),
        (testing.check_linearization, WrongTrace, "trace of linearize differs from automatic"),
        (testing.check_linearization, OtherValue, "value of linearize differs from that of for"),
        (testing.check_linearization, MixesSamples, "sample depends on the other samples"),
        (testing.check_purity, OtherValue, "value of linearize differs from that of forward"),
        (testing.check_purity, WritesInput, "a call changed x"),
        (testing.check_purity, WritesParameter, "a call changed bias"),
        (testing.check_purity, DependsOnMode, "train and eval mode"),
    ],
)
def test_broken_contraction(check, kind, message):
    with pytest.raises(AssertionError, match=message):
        check(kind(), points())


def test_modes_stay():
    g = zoo.dense()
    g.activations.eval()
    testing.check_purity(g, torch.randn(5, zoo.DIM))
    assert g.training
    assert not g.activations.training
    with pytest.raises(ArgumentError):
        testing.check_purity(g, torch.randn(5, zoo.DIM + 1))
    assert g.training
    assert not g.activations.training


@dataclass(frozen=True)
class Biased(LogDet):
    """The exact log-determinant and noise, off by a small amount."""

    bias: float
    stochastic: ClassVar[bool] = True

    def __call__(self, linearization, *, lipschitz):
        exact = Exact()(linearization, lipschitz=lipschitz)
        return exact + 0.1 * torch.randn_like(exact) + self.bias


@dataclass(frozen=True)
class Untold(Biased):
    stochastic: ClassVar[bool] = False


@dataclass(frozen=True)
class WrongShape(LogDet):
    def __call__(self, linearization, *, lipschitz):
        return Exact()(linearization, lipschitz=lipschitz)[:, None]


def check_estimator(estimator):
    g = zoo.dense()
    linearization = g.linearize(torch.randn(4, zoo.DIM))
    testing.check_logdet(estimator, linearization, lipschitz=g.lipschitz)


def test_estimators():
    check_estimator(Biased(0.0))
    with pytest.raises(AssertionError, match=r"off by 0\.0\d+ nats, with a standard error of 0"):
        check_estimator(Biased(0.03))
    with pytest.raises(AssertionError, match="set stochastic = True"):
        check_estimator(Untold(0.0))
    with pytest.raises(AssertionError, match="nats, with a standard error of 0 and a tolerance"):
        check_estimator(PowerSeries(terms=2))
    with pytest.raises(AssertionError, match="expected the batch shape"):
        check_estimator(WrongShape())


def test_tolerance_of_a_series():
    g = zoo.dense(lipschitz=0.5)
    linearization = g.linearize(torch.randn(4, zoo.DIM))
    series, bound = PowerSeries(terms=3), PowerSeries(terms=3).truncation_error(0.5, zoo.DIM)
    exact = Exact()(linearization, lipschitz=0.5)
    off = (series(linearization, lipschitz=0.5) - exact).abs().max()
    testing.check_logdet(series, linearization, lipschitz=0.5, tolerance=float(off) + 1e-9)
    assert off > 0
    assert bound > 0


BLOCKS = {
    "residual": lambda: ResidualBlock(DenseContraction(3)),
    "cayley": lambda: CayleyBlock(DenseContraction(3)),
    "coordinates": lambda: ResidualBlock(
        DenseContraction(3), coordinates=(Asinh(), DiagonalScale(0.5))
    ),
    "conditional": lambda: ResidualBlock(DenseContraction(3, context_dim=2)),
    "image": lambda: ResidualBlock(ConvContraction((1, 3, 2), [4]), logdet=Exact()),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_sound_block(name):
    block = BLOCKS[name]()
    context = torch.randn(10, 2) if name == "conditional" else None
    shape = (1, 3, 2) if name == "image" else (3,)
    testing.check_block(block, torch.randn(10, *shape), context)


def broken(**changes):
    """Make a block class one function of whose evaluations is wrong."""

    class Broken(ResidualBlock):
        def evaluate(self, x, context=None):
            return replace(super().evaluate(x, context), **changes)

    return Broken(DenseContraction(3))


class Shifted(ResidualBlock):
    def evaluate_inverse(self, y, context=None, *, x0=None):
        found = super().evaluate_inverse(y, context, x0=x0)
        return replace(found, x=found.x + 1e-3)


class Detached(ResidualBlock):
    def evaluate_inverse(self, y, context=None, *, x0=None):
        found = super().evaluate_inverse(y, context, x0=x0)
        return replace(found, x=found.x.detach() + 0 * y)


class Centred(ResidualBlock):
    def evaluate(self, x, context=None):
        return super().evaluate(x - 0.1 * x.mean(0), context)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (lambda: broken(log_det=lambda: torch.zeros(10)), "^log_det differs"),
        (lambda: broken(vjp=lambda w: w), "^vjp differs"),
        (lambda: broken(inverse_vjp=lambda w: w), "^inverse_vjp differs"),
        (lambda: Shifted(DenseContraction(3)), "does not lead back"),
        (lambda: Detached(DenseContraction(3)), "gradient through the inverse differs"),
        (lambda: Centred(DenseContraction(3)), "sample depends on the other samples"),
    ],
)
def test_broken_block(block, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_block(block(), torch.randn(10, 3))


def test_refuses_drawn_block():
    block = ResidualBlock(DenseContraction(3), logdet=Roulette())
    with pytest.raises(ArgumentError, match="Roulette draws"):
        testing.check_block(block, torch.randn(10, 3))


@pytest.mark.parametrize("shape", [(3,), (2, 4, 3), (0, 3)])
def test_refuses_other_batches(shape):
    with pytest.raises(ArgumentError, match=r"Expected x of shape \(n, 3\)"):
        testing.check_solver(FixedPoint(), zoo.dense(3), torch.zeros(shape))


def test_solver(monkeypatch):
    g, x = zoo.dense(), torch.randn(20, zoo.DIM)
    testing.check_solver(FixedPoint(), g, x)
    right = solve(g, x + g(x), FixedPoint())
    for changed, message in (
        (replace(right, value=right.value + 1e-3), "exceeds its certified bound"),
        (
            replace(right, stats=replace(right.stats, error_bound=2 * right.stats.tolerance)),
            "exceeds the tolerance",
        ),
    ):
        monkeypatch.setattr(testing.solver, "solve", lambda *arguments, found=changed: found)
        with pytest.raises(AssertionError, match=message):
            testing.check_solver(FixedPoint(), g, x)

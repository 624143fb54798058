"""Kinds of columns, their encoding, and their recognition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lightning", reason="needs the extra train")

from pyro_iresnet.errors import ArgumentError
from pyro_iresnet.tables import Category, HeavyTailed, Integer, Real
from pyro_iresnet.tables.encoding import FittedColumn, TableEncoding
from pyro_iresnet.tables.recognition import recognised

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=500)
KINDS = {
    Real(): 1e4 + 1e3 * NORMAL,
    Real(low=2.0): 2.0 + np.exp(3 * NORMAL),
    Real(high=-1.0): -1.0 - np.exp(NORMAL),
    Real(-1.0, 3.0): RNG.uniform(-1, 3, 500),
    HeavyTailed(): 5 + RNG.standard_cauchy(500),
    Integer(): RNG.integers(-50, 50, 500).astype(float),
    Integer(low=3): 3.0 + RNG.poisson(2, 500),
    Integer(high=-2): -2.0 - RNG.poisson(2, 500),
    Integer(1, 5): RNG.integers(1, 6, 500).astype(float),
    Category(("a", "b", "c")): RNG.integers(0, 3, 500).astype(float),
}
EVERY = pytest.mark.parametrize("kind", KINDS, ids=repr)


def encoding(kind, values):
    return TableEncoding([FittedColumn.of("x", kind, "float64", values)])


@EVERY
def test_round_trip(kind):
    values = torch.from_numpy(KINDS[kind])[:, None]
    made = encoding(kind, KINDS[kind])
    z, _ = made.encode(values)
    assert torch.allclose(made.decode(z), values, rtol=1e-9, atol=0)


@pytest.mark.parametrize("ends", [(None, None), (0, None), (None, 2), (0, 2)])
def test_far_integers(ends):
    # A double of the size of a time in milliseconds has no digits for the noise.
    far = 1_700_000_000_000
    values = torch.arange(3, dtype=torch.float64).repeat(1000)[:, None]
    noise = torch.rand_like(values)
    near = encoding(Integer(*ends), values[:, 0].numpy())
    moved = Integer(*(None if end is None else end + far for end in ends))
    made = encoding(moved, values[:, 0].numpy() + far)
    z, slope = made.encode(values + far, noise)
    torch.testing.assert_close((z, slope), near.encode(values, noise))
    assert torch.equal(made.decode(z), values + far)


@EVERY
def test_log_slope(kind):
    values = torch.from_numpy(KINDS[kind])[:, None].requires_grad_()
    z, slope = encoding(kind, KINDS[kind]).encode(values)
    (derivative,) = torch.autograd.grad(z.sum(), values)
    assert torch.allclose(slope, derivative.abs().log().sum(-1), atol=1e-9)


@EVERY
def test_scale(kind):
    z, _ = encoding(kind, KINDS[kind]).encode(torch.from_numpy(KINDS[kind])[:, None])
    assert abs(float(z.mean())) < 0.2
    assert 0.6 < float(z.std()) < 1.6


@EVERY
def test_samples_far_out_are_allowed(kind):
    far = torch.tensor([[-800.0], [-30.0], [0.0], [30.0], [800.0]], dtype=torch.float64)
    rows = encoding(kind, KINDS[kind]).decode(far).numpy()
    assert kind.allowed(rows).all()


@pytest.mark.parametrize("kind", [Integer(low=3), Integer(1, 5), Category(("a", "b"))], ids=repr)
def test_mass(kind):
    """Integrate the density of the dequantised column: a standard normal in the flow's space."""
    made = encoding(
        kind,
        np.array([3.0, 3.0, 4.0, 5.0]) if kind != Category(("a", "b")) else np.array([0.0, 1.0]),
    )
    top = (
        5.0
        if isinstance(kind, Integer) and kind.high
        else 1.0
        if isinstance(kind, Category)
        else 400.0
    )
    low = 0.0 if isinstance(kind, Category) else kind.low
    x = torch.arange(low, top + 1, dtype=torch.float64)[:, None]
    u = ((torch.arange(2000) + 0.5) / 2000).double()
    z, slope = made.encode(x.repeat_interleave(2000, 0), u.repeat(len(x))[:, None])
    density = torch.distributions.Normal(0.0, 1.0).log_prob(z.squeeze(-1)) + slope
    assert float(density.exp().mean()) * len(x) == pytest.approx(1, abs=2e-3)


def test_correlated_columns_become_uncorrelated():
    x = NORMAL[:, None] * [1.0, -2.0] + 0.1 * RNG.normal(size=(500, 2))
    columns = [FittedColumn.of(n, Real(), "float64", v) for n, v in zip("ab", x.T, strict=True)]
    made = TableEncoding.of(columns, x)
    z, slope = made.encode(torch.from_numpy(x))
    assert torch.allclose(z.T.cov(), torch.eye(2).double(), atol=0.02)
    assert torch.allclose(made.decode(z), torch.from_numpy(x))
    jacobian = torch.func.jacrev(lambda row: made.encode(row[None])[0][0])(torch.from_numpy(x[0]))
    assert float(slope[0]) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet))


@pytest.mark.parametrize(
    ("values", "is_integer", "kind"),
    [
        (NORMAL, False, Real()),
        (np.exp(NORMAL), False, Real(low=0.0)),
        (RNG.beta(2, 2, 500), False, Real(0.0, 1.0)),
        # Near one end only: the next row may lie beyond 1.
        (RNG.uniform(0.01, 0.94, 500), False, Real(low=0.0)),
        (RNG.uniform(0.06, 0.99, 500), False, Real(low=0.0)),
        # No row is negative, but the next may be.
        (np.abs(np.random.default_rng(3).normal(3, 1, 500)), False, Real()),
        (np.random.default_rng(3).normal(170, 10, 500), False, Real(low=0.0)),
        (RNG.gamma(2, 1, 500), False, Real(low=0.0)),
        (RNG.standard_t(1.5, 2000), False, HeavyTailed()),
        (RNG.poisson(4, 500), True, Integer(low=0)),
        (RNG.integers(1, 6, 500), True, Integer(1, 5)),
        (RNG.random(500) < 0.01, True, Integer(0, 1)),
        (RNG.integers(-999, 999, 500), True, Integer()),
        (np.zeros(20), True, Integer(low=0)),
    ],
)
def test_recognises(values, is_integer, kind):
    found = recognised(np.asarray(values, dtype=float), is_integer=is_integer)
    assert found == kind


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_limits_in_order(low, high):
    if low < high:
        least, most = Real(low, high).range()
        assert low < least <= most < high or math.nextafter(low, math.inf) == high
    else:
        with pytest.raises(ArgumentError, match="low below high"):
            Real(low, high)


@pytest.mark.parametrize("limit", [math.inf, math.nan, "1", True, None])
def test_refuses_limits(limit):
    if limit is None:
        assert Real(limit, limit) == Real()
        return
    with pytest.raises(ArgumentError, match="low"):
        Real(low=limit)


def test_refuses_one_label():
    with pytest.raises(ArgumentError, match="two different"):
        Category(("a",))


@pytest.mark.parametrize("kind", [Integer(low=0, high=16), Integer(low=0), Integer()], ids=repr)
@pytest.mark.parametrize("rare", [0, 3])
def test_scale_of_nearly_constant_integers(kind, rare):
    # The mean of so many equal numbers is off by rounding.
    values = np.zeros(1347)
    values[:rare] = 1.0
    z, _ = encoding(kind, values).encode(torch.from_numpy(values)[:, None])
    assert 0.8 < float(z.std()) < 1.2
    assert abs(float(z.mean())) < 0.2

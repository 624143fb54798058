import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from pyro_iresnet import Exact, Roulette, testing
from pyro_iresnet.errors import ArgumentError, VarianceWarning
from pyro_iresnet.logdet import (
    Adaptive,
    Geometric,
    MeanJacobian,
    Subsample,
    Truncation,
)
from pyro_iresnet.logdet.packing import pack, unpack_truncation
from pyro_iresnet.operators import Chain, Dense, Diagonal, Linearization

from .. import zoo

TRUNCATIONS = [Adaptive(), Adaptive(0.7, 3), Geometric(), Geometric(0.2, 1)]


def test_geometric_survival():
    assert Geometric(p=0.2).survival(7, torch.rand(3)).tolist() == [0.8] * 3


def test_adaptive_survival():
    survival = Adaptive(0.5).survival(1, torch.tensor([0.0, 0.1, 0.5, 3.0]))
    torch.testing.assert_close(survival, torch.tensor([0.0, 0.2, 1.0, 1.0]))


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=repr)
def test_packs_and_unpacks(truncation):
    assert unpack_truncation(*pack(truncation)) == truncation


def draw(truncation, lipschitz):
    g = zoo.dense(3, lipschitz=lipschitz)
    Roulette(truncation)(g.linearize(torch.randn(4, 3)), lipschitz=lipschitz)


def test_geometric_warns():
    words = r"reaches 0\.707, and lipschitz 0\.9 .* 0\.810 is at least .* 0\.500.*p below 0\.190"
    with pytest.warns(VarianceWarning, match=words):
        draw(Geometric(0.5), 0.9)


@pytest.mark.parametrize("truncation", [Adaptive(), Geometric(0.1), Geometric(0.5)])
def test_silent_at_finite_variance(truncation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(truncation, 0.7)


def test_warns_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            draw(Geometric(0.5), 0.9)
    assert len([w for w in caught if w.category is VarianceWarning]) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Geometric(0.0), r"p in \(0, 1\); got 0.0"),
        (lambda: Geometric(1.0), r"p in \(0, 1\); got 1.0"),
        (lambda: Geometric(exact_terms=0), "exact_terms to be at least 1; got 0"),
        (lambda: Adaptive(0.0), "threshold to be finite and above 0; got 0.0"),
    ],
)
def test_refuses_wrong_settings(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=repr)
def test_unlikely_longest_series(truncation):
    # Chance for the magnitude 0.9^k to survive so many terms.
    log_chance, weight = 0.0, 1.0
    for k in range(truncation.exact_terms, truncation.max_terms(0.9) + 1):
        survival = float(truncation.survival(k, torch.tensor([weight * 0.9**k]).double()))
        log_chance += math.log(survival)
        weight /= survival
    assert log_chance < -80


@dataclass(frozen=True)
class Slow(Truncation):
    """Truncation of a user, whose series are longer than those of a steeper contraction."""

    exact_terms: int = 1

    def survival(self, term, magnitude):
        return torch.full_like(magnitude, 0.9)


@pytest.mark.parametrize("control_variate", [None, MeanJacobian()])
def test_long_series_of_a_true_contraction(control_variate):
    g = zoo.dense(lipschitz=0.1)
    linearization = g.linearize(torch.randn(3000, zoo.DIM))
    logdet = Roulette(Slow(), control_variate=control_variate)(linearization, lipschitz=0.1)
    error = logdet - Exact()(linearization, lipschitz=0.1)
    assert abs(error.mean()) < 5 * error.std() / math.sqrt(3000)
    # 0.9^k < e^-100.
    assert 950 <= Slow().max_terms(0.1) <= 960


def test_series_without_end():
    """End a truncation that never ends a series by itself, after many terms."""

    @dataclass(frozen=True)
    class Endless(Slow):
        def survival(self, term, magnitude):
            return torch.ones_like(magnitude)

    assert 10_000 < Endless().max_terms(0.1) < 11_000


class Eager(Geometric):
    """Truncation with a survival above 1."""

    def survival(self, term, magnitude):
        return torch.full_like(magnitude, 2.0 if term < 5 else 0.5)


def test_clamps_survival():
    linearization = Linearization(torch.zeros(2, 3), Dense(0.5 * torch.eye(3)))
    testing.check_logdet(
        Roulette(Eager(0.5), control_variate=None), linearization, lipschitz=0.5, draws=20_000
    )


def test_tiny_threshold():
    linearization = Linearization(torch.zeros(2, 2), Dense(-0.9 * torch.eye(2)))
    logdet = Roulette(Adaptive(1e-60), control_variate=None)(linearization, lipschitz=0.9)
    torch.testing.assert_close(logdet, torch.full((2,), 2 * math.log(0.1)))


HALF = Dense(0.5 * torch.eye(64, dtype=torch.float64))
EYE = Dense(torch.eye(64, dtype=torch.float64))
FACTORS = Chain((EYE, Diagonal(torch.full((3, 64), 0.5, dtype=torch.float64)), EYE))


@pytest.mark.parametrize("jacobian", [HALF, FACTORS])
def test_magnitude_of_one_coordinate(jacobian):
    seen = []

    class Watched(Adaptive):
        def survival(self, term, magnitude):
            seen.append(magnitude.clone())
            return super().survival(term, magnitude)

    estimator = Roulette(Watched(), control_variate=None)
    estimator(Linearization(torch.zeros(3, 64), jacobian), lipschitz=0.9)
    torch.testing.assert_close(seen[0], torch.full((3,), 0.5))


def test_likelihood_takes_the_default_rest():
    noisy = Roulette(Subsample(), control_variate=None)
    assert noisy.for_likelihood() == Roulette()


@dataclass(frozen=True, kw_only=True)
class Constant(Geometric):
    """A truncation of a user's, with a constant of the class and a keyword."""

    note: ClassVar[str] = "not a number"
    share: float = 0.5


def test_takes_a_users_truncation_apart():
    truncation = Constant(p=0.3, exact_terms=2, share=0.25)
    packed = pack(truncation)
    assert packed is not None
    assert unpack_truncation(*packed) == truncation

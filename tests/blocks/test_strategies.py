"""Strategies: each names the setting that it refuses, and keeps the others."""

import dataclasses
import math
import warnings
from dataclasses import dataclass

import pytest
import torch

from pyro_iresnet import ConvContraction, DenseContraction, logdet, norms, solvers
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError, VarianceWarning
from pyro_iresnet.logdet import (
    ByMode,
    ConvergedSeries,
    Exact,
    Geometric,
    MeanJacobian,
    PowerSeries,
    Roulette,
)
from pyro_iresnet.norms import Gram
from pyro_iresnet.norms.checks import bounds_of

BASES = (logdet.LogDet, logdet.Truncation, norms.Norm, solvers.Solver, solvers.AffinePreconditioner)
# What a strategy needs to be made at all.
NEEDED = {logdet.ByMode: {"train": Exact(), "evaluate": Exact()}, norms.Hard: {"norm": Gram()}}
KINDS = [
    kind
    for space in (logdet, norms, solvers)
    for kind in map(vars(space).get, space.__all__)
    if isinstance(kind, type) and issubclass(kind, BASES) and dataclasses.is_dataclass(kind)
]
# A solver has no settings but those of its kinds.
SETTINGS = [
    (kind, field)
    for kind in KINDS
    if kind is not solvers.Solver
    for field in dataclasses.fields(kind)
]
NUMBERS = [
    (kind, field)
    for kind, field in SETTINGS
    if field.name != "seed" and any(word in str(field.type) for word in ("int", "float"))
]


def named(settings):
    return pytest.mark.parametrize(
        ("kind", "field"), settings, ids=lambda v: getattr(v, "name", getattr(v, "__name__", None))
    )


@named(SETTINGS)
def test_names_setting_of_wrong_type(kind, field):
    wrong = {**NEEDED.get(kind, {}), field.name: object()}
    with pytest.raises(ArgumentTypeError, match=rf"^Expected {field.name} (to be|in) .*; got "):
        kind(**wrong)


@named(NUMBERS)
@pytest.mark.parametrize("value", [-1, math.nan, True, "1"], ids=str)
def test_names_number_out_of_range(kind, field, value):
    with pytest.raises(
        (ArgumentError, ArgumentTypeError), match=rf"^Expected {field.name} (to be|in) .*; got "
    ):
        kind(**{**NEEDED.get(kind, {}), field.name: value})


@named(NUMBERS)
def test_keeps_number(kind, field):
    integral = "int" in str(field.type)
    value = 7 if integral else 0.37
    made = kind(**{**NEEDED.get(kind, {}), field.name: value})
    assert getattr(made, field.name) == value
    assert type(getattr(made, field.name)) is (int if integral else float)


ESTIMATORS = [Exact(), PowerSeries(), ConvergedSeries(), Roulette()]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_estimators_name_argument(estimator):
    at = DenseContraction(2).linearize(torch.randn(3, 2))
    example = r"linearization to be a Linearization such as contraction\.linearize\(x\); got Tensor"
    with pytest.raises(ArgumentTypeError, match=example):
        estimator(torch.randn(3, 2), lipschitz=0.9)
    words = r"series to be a Series such as LogOnePlus\(\); got str 'log'\.$"
    with pytest.raises(ArgumentTypeError, match=words):
        estimator(at, lipschitz=0.9, series="log")


def test_truncation_error_names_argument():
    for wrong, words in (
        ({"event_size": 0}, "^Expected event_size to be"),
        ({"event_size": 2.5}, "^Expected event_size to be"),
        ({"series": "log"}, r"^Expected series to be a Series such as LogOnePlus\(\);"),
        ({"lipschitz": 1.0}, "lipschitz"),
    ):
        with pytest.raises((ArgumentError, ArgumentTypeError), match=words):
            PowerSeries().truncation_error(**{"event_size": 2, "lipschitz": 0.5, **wrong})


def test_estimator_by_mode():
    train, evaluate = PowerSeries(4, probes=2, seed=1), ConvergedSeries(1e-2, probes=3, seed=2)
    both = ByMode(train, evaluate)
    assert both.for_mode(True) == train
    assert both.for_mode(False) == evaluate
    assert both.with_seed(5) == ByMode(
        PowerSeries(4, probes=2, seed=5), ConvergedSeries(1e-2, probes=3, seed=5)
    )


@pytest.mark.parametrize("kind", [PowerSeries, ConvergedSeries])
def test_seed_keeps_subclass(kind):
    @dataclass(frozen=True)
    class Own(kind):
        factor: float = 2.0

    assert Own(factor=3.0).with_seed(5) == Own(factor=3.0, seed=5)


def test_two_modes_take_no_call():
    at = DenseContraction(3).linearize(torch.randn(4, 3))
    words = r"^Expected logdet to be the estimator of one mode; got ByMode.*for_mode\(True\)"
    with pytest.raises(ArgumentError, match=words):
        ByMode(PowerSeries(), Exact())(at, lipschitz=0.9)


@pytest.mark.parametrize(("lipschitz", "warns"), [(0.70, False), (0.71, True), (0.8, True)])
def test_geometric_warns_of_infinite_variance(lipschitz, warns):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        Geometric(p=0.5).warn(lipschitz)
    assert [w.category for w in found] == [VarianceWarning] * warns


def test_bounds_of_weights():
    weight = torch.randn(5, 4, 2, 3)
    for shape in [(), (4,), (1,), (5, 4), (5, 1), (1, 4), (1, 1)]:
        bound = torch.rand(shape) + 0.1
        assert bounds_of(bound, weight) is bound
    for shape in [(5,), (4, 5), (2, 5, 4), (1, 5, 4)]:
        with pytest.raises(ArgumentError, match=r"^Expected bound of a shape .* \(5, 4\)"):
            bounds_of(torch.ones(shape), weight)
    for entry in [0.0, -1.0, math.nan, math.inf]:
        with pytest.raises(ArgumentError, match=r"^Expected bound to be finite and above 0;"):
            bounds_of(torch.tensor([1.0, entry, 1.0, 1.0]), weight)
    assert bounds_of(0.5, weight).shape == ()


def test_mean_jacobian_of_vectors_only():
    images = ConvContraction((1, 4, 4), [3]).linearize(torch.randn(5, 1, 4, 4))
    assert MeanJacobian().matrix(images) is None
    vectors = DenseContraction(2)
    assert MeanJacobian().matrix(vectors.linearize(torch.randn(0, 2))) is None
    assert MeanJacobian().matrix(vectors.linearize(torch.randn(5, 2))).shape == (2, 2)


def test_names_start_that_is_not_finite():
    contraction = DenseContraction(2)
    with pytest.raises(ArgumentError, match=r"^Expected x0 to be finite; got NaN or infinity\."):
        solvers.solve(contraction, torch.zeros(3, 2), x0=torch.full((2,), math.nan))

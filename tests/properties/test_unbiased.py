"""Estimators of the log-determinant: means without bias, cuts within their proven bounds."""

import math

import torch
from hypothesis import strategies as st

from pyro_iresnet import Exact, PowerSeries, Roulette
from pyro_iresnet.blocks.cayley import CayleySeries
from pyro_iresnet.logdet import Adaptive, ConvergedSeries, Geometric, LogOnePlus

from .strategies import holds_for, networks

DRAWS, SAMPLES = 2000, 3
# A normal mean lies farther out in one of 5e8 checks. The slow variants make some 10,000 checks, so
# the false-alarm rate of a run is about 2e-5.
ERRORS = 6.0

SERIES = st.sampled_from([LogOnePlus(), CayleySeries()])
ROULETTES = {
    "default": Roulette(),
    "plain": Roulette(control_variate=None),
    "coarse": Roulette(Adaptive(threshold=0.5)),
    "two_probes": Roulette(Adaptive(exact_terms=3), probes=2),
    # Terms shrink by less than the survival probability, 0.9, in the mean square.
    "geometric": Roulette(Geometric(p=0.1, exact_terms=4), control_variate=None),
}
# With a smaller constant too few of the draws go on for a standard error.
CONTRACTIONS = networks(dims=(2, 5), least=0.3, largest=0.9)


def linearization_of(network):
    g = network.make()
    return g.linearize(network.points(SAMPLES), network.contexts(SAMPLES))


def off(draws, exact):
    """Return the distance of a mean from its expectation, in standard errors."""
    error = draws.std(0) / math.sqrt(len(draws))
    return float(((draws.mean(0) - exact).abs() / (error + 1e-8)).max())


@holds_for(40, network=CONTRACTIONS, name=st.sampled_from(tuple(ROULETTES)), series=SERIES)
def test_mean_of_roulette(network, name, series):
    with torch.no_grad():
        at = linearization_of(network)
        options = {"lipschitz": network.lipschitz, "series": series}
        exact = Exact()(at, **options)
        rows = at.select(torch.arange(SAMPLES).repeat(DRAWS))
        draws = ROULETTES[name](rows, **options).reshape(DRAWS, SAMPLES)
    assert off(draws, exact) <= ERRORS


@holds_for(20, network=CONTRACTIONS, name=st.sampled_from(tuple(ROULETTES)), series=SERIES)
def test_mean_gradient_of_roulette(network, name, series):
    g, options = network.make(), {"lipschitz": network.lipschitz, "series": series}
    x, context = network.points(SAMPLES), network.contexts(SAMPLES)
    x = x.repeat(DRAWS, *(1,) * (x.dim() - 1)).requires_grad_()
    at = g.linearize(x, None if context is None else context.repeat(DRAWS, 1))
    exact, drawn = (
        torch.autograd.grad(
            logdet(at, **options).sum(), x, retain_graph=True, materialize_grads=True
        )[0].reshape(DRAWS, SAMPLES, -1)
        for logdet in (Exact(), ROULETTES[name])
    )
    assert off(drawn, exact[0]) <= ERRORS


@holds_for(15, network=CONTRACTIONS, terms=st.integers(1, 6), series=SERIES)
def test_mean_of_power_series(network, terms, series):
    power = PowerSeries(terms)
    with torch.no_grad():
        at = linearization_of(network)
        options = {"lipschitz": network.lipschitz, "series": series}
        exact = Exact()(at, **options)
        draws = torch.stack([power.with_seed(s)(at, **options) for s in range(100)])
    bound = power.truncation_error(network.lipschitz, at.event_size, series)
    error = draws.std(0) / math.sqrt(len(draws))
    assert bool(((draws.mean(0) - exact).abs() <= bound + ERRORS * error + 1e-8).all())


@holds_for(
    30,
    network=CONTRACTIONS,
    terms=st.integers(1, 8),
    probes=st.integers(1, 3),
    seed=st.integers(0, 99),
    series=SERIES,
)
def test_cut_of_power_series(network, terms, probes, seed, series):
    short, long = (PowerSeries(n, probes, seed) for n in (terms, 300))
    with torch.no_grad():
        at = linearization_of(network)
        options = {"lipschitz": network.lipschitz, "series": series}
        cut = (short(at, **options) - long(at, **options)).abs()
    bound = short.truncation_error(network.lipschitz, at.event_size, series)
    assert float(cut.max()) <= bound + 1e-10


@holds_for(
    30, network=CONTRACTIONS, digits=st.floats(0.0, 6.0), probes=st.integers(1, 3), series=SERIES
)
def test_tolerance_of_converged_series(network, digits, probes, series):
    tolerance = 10**-digits
    estimators = ConvergedSeries(tolerance, probes), PowerSeries(300, probes)
    with torch.no_grad():
        at = linearization_of(network)
        options = {"lipschitz": network.lipschitz, "series": series}
        values = [estimator(at, **options) for estimator in estimators]
    assert float((values[0] - values[1]).abs().max()) <= tolerance + 1e-10

"""One table with scales from 1e-6 to 1e4, a heavy tail, limits and counts."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import Beta, NegativeBinomial, Normal, StudentT

from pyro_iresnet.tables import DensityEstimator, HeavyTailed, Integer, Real

KINDS = {
    "share": Real(low=0.0, high=1.0),
    "residual": HeavyTailed(),
    "visits": Integer(low=0),
}
# Wider than the rows in every column, so that weights are bounded in practice.
PROPOSAL = {
    "tiny": Normal(2e-6, 1.5e-6),
    "plain": Normal(0.0, 1.6),
    "large": Normal(3e4, 1.6e4),
    "share": Beta(1.5, 2.0),
    "residual": StudentT(1.5, 0.0, 1.5),
    "visits": NegativeBinomial(3.0, 0.55),
}


def rows(count):
    plain = torch.randn(count)
    found = {
        "tiny": 2e-6 + 1e-6 * torch.randn(count),
        "plain": plain,
        "large": 3e4 + 1e4 * (0.8 * plain + 0.6 * torch.randn(count)),
        "share": Beta(2.0, 3.0).sample((count,)),
        "residual": StudentT(2.0).sample((count,)),
        "visits": torch.poisson((0.8 + 0.3 * plain).exp()),
    }
    return pd.DataFrame({name: column.numpy() for name, column in found.items()})


@pytest.mark.slow
def test_samples_are_possible_and_densities_integrate_to_one():
    torch.manual_seed(0)
    table = rows(5000).astype({"visits": int})
    estimator = DensityEstimator(KINDS, max_steps=400, num_blocks=4, progress=False).fit(table)

    drawn = estimator.sample(100_000)
    assert drawn.dtypes.tolist() == table.dtypes.tolist()
    assert np.isfinite(drawn.to_numpy()).all()
    assert drawn["share"].between(0, 1, inclusive="neither").all()
    assert (drawn["visits"] >= 0).all()
    middles = drawn.median() - table.median()
    assert (middles.abs() < 0.15 * (table.quantile(0.84) - table.quantile(0.16))).all()

    columns = {name: law.sample((40_000,)).double() for name, law in PROPOSAL.items()}
    log_q = sum(law.log_prob(columns[name]) for name, law in PROPOSAL.items()).numpy()
    points = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
    weights = np.exp(estimator.score_samples(points.astype({"visits": int})) - log_q)
    error = weights.std() / math.sqrt(len(weights))
    assert error < 0.05
    assert abs(weights.mean() - 1) < 4 * error

"""Part 1: density estimation with nflows, on digits or on the user's own table."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import ActNorm, AffineCouplingTransform, CompositeTransform
from torch import Tensor, nn

from ..hosts.nflows import IResNetTransform
from ..norms import Cholesky
from . import pictures
from .data import Table
from .fit import fit

NUM_BLOCKS = 4
BATCH = 256
# The held-out score averages over this many draws of the dequantisation noise.
TEST_DRAWS = 4
CHUNK = 2000

Row = dict[str, Any]


def run(table: Table, steps: int, output: Path) -> tuple[list[Row], list[Path]]:
    """Fit a Gaussian, a RealNVP and an i-ResNet flow; score them on the held-out rows."""
    rows = [_gaussian(table)]
    ours = iresnet_flow(table.features)
    size = _size(ours)
    if table.features > 1:
        # A coupling layer transforms some coordinates given the others, so it needs two.
        rows.append(_flow("RealNVP", realnvp(table.features, size), table, steps, lr=1e-3))
    rows.append(_flow("i-ResNet", ours, table, steps, lr=2e-3))
    with torch.no_grad():
        samples = table.decode(ours.sample(64 if table.image_shape else 500))
    path = output / "density_samples.png"
    pictures.samples_beside_data(table, samples, path)
    return rows, [path]


def iresnet_flow(features: int) -> Flow:
    """Make a flow of residual blocks, with an ActNorm before each block and at the end."""
    parts: list[nn.Module] = []
    for _ in range(NUM_BLOCKS):
        parts += [
            ActNorm(features),
            IResNetTransform(features, norm=Cholesky(damping=1.0), coordinates=None),
        ]
    return Flow(CompositeTransform([*parts, ActNorm(features)]), StandardNormal([features]))


def realnvp(features: int, size: int) -> Flow:
    """Make a flow of six affine coupling layers, of about ``size`` parameters.

    ActNorms, dropout and learning rate are the choices that scored best on the digits. Without
    dropout the flow memorises the 1,500 rows.
    """

    def make(width: int) -> Flow:
        net = partial(ResidualNet, hidden_features=width, dropout_probability=0.5)
        mask = torch.ones(features)
        mask[::2] = -1
        parts: list[nn.Module] = []
        for _ in range(6):
            parts += [ActNorm(features), AffineCouplingTransform(mask, net)]
            mask = -mask
        return Flow(CompositeTransform([*parts, ActNorm(features)]), StandardNormal([features]))

    with torch.random.fork_rng(devices=[]):
        sizes = {width: _size(make(width)) for width in range(8, 257, 4)}
    return make(min(sizes, key=lambda width: abs(sizes[width] - size)))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _flow(name: str, flow: Flow, table: Table, steps: int, *, lr: float) -> Row:
    # ActNorm starts from its first batch; a large batch gives good statistics.
    with torch.no_grad():
        flow.log_prob(table.encode(table.train[:CHUNK]))

    def loss() -> Tensor:
        batch = table.train[torch.randint(0, len(table.train), (BATCH,))]
        return -flow.log_prob(table.encode(batch)).mean()

    seconds = fit(f"1 {table.name}: {name}", flow.parameters(), loss, steps=steps, lr=lr)
    flow.eval()
    return _score(name, table, flow.log_prob, _size(flow), seconds)


def _gaussian(table: Table) -> Row:
    start = time.perf_counter()
    rows = torch.cat([table.encode(table.train) for _ in range(TEST_DRAWS)]).double()
    covariance = rows.T.cov().reshape(table.features, table.features)
    # A ridge keeps the factorisation possible where columns depend on each other.
    ridge = 1e-6 * covariance.diagonal().mean() * torch.eye(table.features, dtype=rows.dtype)
    gaussian = torch.distributions.MultivariateNormal(rows.mean(0), covariance + ridge)
    size = table.features + table.features * (table.features + 1) // 2
    seconds = time.perf_counter() - start
    return _score("Gaussian", table, lambda z: gaussian.log_prob(z.double()), size, seconds)


@torch.no_grad()
def _score(name: str, table: Table, log_prob: Any, size: int, seconds: float) -> Row:
    nats, bits = [], []
    for _ in range(TEST_DRAWS):
        for rows in table.test.split(CHUNK):
            z = table.encode(rows)
            log_p = log_prob(z)
            nats.append(-log_p)
            bits.append(-(log_p + table.log_slope(z)) / (table.features * math.log(2)))
    return {
        "part": "density, nflows",
        "data": table.name,
        "model": name,
        "held_out_nats": float(torch.cat(nats).mean()),
        "held_out_bits_per_dim": float(torch.cat(bits).mean()),
        "parameters": size,
        "seconds": seconds,
    }

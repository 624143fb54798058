"""Part 1: the density of a table with nflows, on the 8x8 digits of scikit-learn."""

import copy
import math
import time
from pathlib import Path
from typing import Any, cast

import pandas as pd
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import IdentityTransform
from sklearn.datasets import load_digits

from ..tables import DensityEstimator, Integer
from . import pictures

NUM_BLOCKS = 4
HELD_OUT = 297

Row = dict[str, Any]


def digits() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the pixels of 1,500 digits to train on and of 297 held out, integers up to 16."""
    pixels = cast(pd.DataFrame, load_digits(as_frame=True, return_X_y=True)[0])
    shuffled = pixels.astype(int).sample(frac=1, random_state=0)
    return shuffled.iloc[HELD_OUT:], shuffled.iloc[:HELD_OUT]


def run(steps: int, output: Path) -> tuple[list[Row], list[Path]]:
    """Fit a flow; score it, and the normal distribution it starts from, on the held-out rows."""
    train, test = digits()
    kinds = dict.fromkeys(train.columns, Integer(low=0, high=16))
    estimator = DensityEstimator(kinds, num_blocks=NUM_BLOCKS, max_steps=steps)
    start = time.perf_counter()
    estimator.fit(train)
    seconds = time.perf_counter() - start
    normal = copy.copy(estimator.model_)
    # The encoding takes the rows to a mean of 0 and to a covariance of the identity.
    normal.flow = Flow(IdentityTransform(), StandardNormal([len(kinds)])).double()
    size = sum(p.numel() for p in estimator.flow_.parameters())
    rows = [
        _row(
            "normal distribution", float(normal.scores(normal.rows(test), None).mean()), len(kinds)
        ),
        _row("i-ResNet", estimator.score(test), len(kinds))
        | {"parameters": size, "seconds": seconds},
    ]
    path = output / "digits.png"
    pictures.digits_beside_samples(test.to_numpy(), estimator.sample(64).to_numpy(), path)
    return rows, [path]


def _row(model: str, nats: float, columns: int) -> Row:
    return {
        "part": "density, nflows",
        "data": "digits",
        "model": model,
        "held_out_nats": -nats,
        "held_out_bits_per_dim": -nats / columns / math.log(2),
    }

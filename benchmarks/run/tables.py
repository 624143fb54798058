"""Density estimators on real tables, each with one call."""

import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Literal, TypedDict

import numpy as np
import pandas as pd
import torch
import typer
import zuko
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from pyro_iresnet.tables import DensityEstimator
from pyro_iresnet.tables.data import RandomBatches
from pyro_iresnet.tables.fit import checks_of, train
from pyro_iresnet.tables.model import TableModel

from ..harness.report import Fast, Kept, Threads, Write, publish, table
from ..harness.runs import Runs
from ..targets.tables import tables

# Splits 0 and 1 chose the recipe.
FIRST, SPLITS = 2, 5
HELD_OUT, STEPS = 0.2, 5000
# Of the flows of zuko.
RATE = 1e-3
# Of the mixture of normals.
COMPONENTS, DAMPINGS = range(1, 11), (1e-6, 1e-3, 1e-2)
OURS, NORMAL, MIXTURE = "DensityEstimator", "normal", "mixture of normals"
NAMES = (OURS, NORMAL, MIXTURE, "NSF", "MAF")
FEW = ("iris", "linnerud")


class Score(TypedDict):
    """Result of a run.

    Arguments:
        nats: the mean over the held-out rows, in the units of the table.
        worst: the nats of the least likely row.
        seconds: seconds of the processor.
    """

    nats: float
    worst: float
    seconds: float


# Stands for a run that was not made.
MISSING: Score = {"nats": math.nan, "worst": math.nan, "seconds": math.nan}


class OfSklearn(nn.Module):
    """Density that scikit-learn fits to encoded rows."""

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.mixture = mixture

    def log_prob(self, z: Tensor, context: None = None) -> Tensor:
        return torch.from_numpy(self.mixture.score_samples(z.numpy()))


class OfZuko(nn.Module):
    """Flow of zuko, under the name of a flow of nflows."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def log_prob(self, z: Tensor, context: None = None) -> Tensor:
        return self.flow().log_prob(z)


@dataclass(frozen=True)
class Study:
    """Runs of the comparison.

    Arguments:
        runs: the finished runs.
        max_steps: the most steps of each training.
        splits: the number of splits.
        names: the tables.
    """

    runs: Runs[Score]
    max_steps: int
    splits: int
    names: tuple[str, ...]

    def score(self, name: str, contender: str, split: int) -> Score:
        """Fit a contender to a split of a table, and score the held-out rows."""
        label = f"{name} / {contender} / {split} / {self.max_steps}"
        return self.runs.get(label, lambda: self._fit(name, contender, split))

    def has(self, name: str) -> bool:
        """Tell whether all runs of a table are kept."""
        splits = range(FIRST, FIRST + self.splits)
        return MISSING not in [self.score(name, each, split) for each in NAMES for split in splits]

    def _fit(self, name: str, contender: str, split: int) -> Score:
        rows = tables()[name]()
        order = np.random.default_rng(split).permutation(len(rows))
        count = max(1, round(HELD_OUT * len(rows)))
        held_out, kept = rows.iloc[order[:count]], rows.iloc[order[count:]]
        torch.manual_seed(split)
        start = time.process_time()
        estimator = DensityEstimator(max_steps=self.max_steps, progress=False)
        if contender != OURS:
            # The encoding alone.
            estimator.set_params(max_steps=1)
        model = estimator.fit(kept).model_
        if contender != OURS:
            start = time.process_time()
            self._replace(model, kept, contender)
        seconds = time.process_time() - start
        nats = -model.scores(model.rows(held_out), None)
        return {"nats": float(nats.mean()), "worst": float(nats.max()), "seconds": seconds}

    def _replace(self, model: TableModel, kept: pd.DataFrame, contender: str) -> None:
        """Put a contender in the place of the flow, behind the same encoding."""
        rows = model.rows(kept)
        size = sum(p.numel() for p in model.flow.parameters())
        order = torch.randperm(len(rows)).numpy()
        number = max(1, round(0.1 * len(rows)))
        if contender in (NORMAL, MIXTURE):
            z = model.encoding.encode(torch.from_numpy(rows))[0].numpy()
            if contender == NORMAL:
                fit = GaussianMixture(1, random_state=0).fit(z)
            else:
                fit = _mixture(z[order[number:]], z[order[:number]])
            made: nn.Module = OfSklearn(fit)
        else:
            made = OfZuko(_of_size(contender, rows.shape[1], size))
            checks, between = checks_of(len(rows), 256, self.max_steps)
            batches = RandomBatches(rows, None, order[number:], model.encoding, 256, between)
            _trained(made, batches, order[:number], checks)
        model.flow = made.double().eval()  # pyright: ignore[reportAttributeAccessIssue]


def _mixture(z: np.ndarray, held_out: np.ndarray) -> GaussianMixture:
    """Choose components and damping by the rows that stop the flows."""
    fits = [
        GaussianMixture(count, reg_covar=damping, random_state=0).fit(z)
        for count in COMPONENTS
        for damping in DAMPINGS
        if count <= len(z) // 2
    ]
    return max(fits, key=lambda fit: fit.score(held_out))


def _of_size(name: str, dim: int, size: int) -> nn.Module:
    """Make a flow of zuko with about as many parameters."""
    kind = zuko.flows.NSF if name == "NSF" else zuko.flows.MAF

    def made(width: int) -> nn.Module:
        return kind(dim, transforms=3, hidden_features=(width, width))

    def off(width: int) -> float:
        return abs(sum(p.numel() for p in made(width).parameters()) - size)

    return made(min(range(8, 257, 8), key=off))


def _trained(flow: nn.Module, batches: RandomBatches, held_out: np.ndarray, checks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(
            flow,
            batches,
            held_out,
            checks=checks,
            learning_rate=RATE,
            patience=1.0,
            options={},
            progress=False,
            folder=Path(folder),
        )


def compared(study: Study, key: Literal["nats", "worst", "seconds"]) -> str:
    """Make the table of one figure: medians over the splits, of the worst row the largest."""
    rows = []
    for name in study.names:
        found = {
            contender: [study.score(name, contender, FIRST + i)[key] for i in range(study.splits)]
            for contender in NAMES
        }
        told = {c: max(f) if key == "worst" else median(f) for c, f in found.items()}
        best = min(told.values())
        cells = [f"**{v:.2f}**" if v == best else f"{v:.2f}" for v in told.values()]
        if key == "nats":
            cells.append(_less(found, min(NAMES[1:], key=told.__getitem__)))
        rows.append([name, *cells])
    head = ["", *NAMES, *(["ours less the best other"] if key == "nats" else [])]
    return table(head, rows)


def _less(found: dict[str, list[float]], other: str) -> str:
    """Tell the differences on the same splits: the median, the lowest and the highest."""
    less = [ours - theirs for ours, theirs in zip(found[OURS], found[other], strict=True)]
    return f"{median(less):.2f} ({min(less):.2f} to {max(less):.2f})"


def body(study: Study) -> str:
    """Write the page."""
    shapes = {name: tables()[name]().shape for name in study.names}
    told = ", ".join(f"{name} {rows:,} x {columns}" for name, (rows, columns) in shapes.items())
    missing = set(tables()) - set(study.names)
    told += f" (not run: {', '.join(sorted(missing))})" if missing else ""
    return f"""Each contender has the same encoding of the columns, by \
`pyro_iresnet.tables`: {told}. A fifth of the rows is held out, {study.splits} splits. \
`DensityEstimator` has its defaults, which were chosen on two other splits of these tables. NSF \
and MAF (`zuko`, three transforms) have about as many parameters, and the same early stopping and \
average of the weights, at the rate {RATE:g}. A tenth of the other rows stops the flows, and \
chooses the components of the mixture (up to {COMPONENTS[-1]}) and what is added to its variances \
({", ".join(f"{d:g}" for d in DAMPINGS)}). The last column is of the same splits, beside the \
contender with the best median.

## Held-out nats a row, medians over the splits

{compared(study, "nats")}

## Nats of the worst row of all splits

{compared(study, "worst")}

## Seconds of the processor

{compared(study, "seconds")}"""


def main(
    fast: Fast = False,
    write: Write = False,
    threads: Threads = 1,
    log: Kept = None,
    steps: Annotated[int, typer.Option(help="The most of a training.")] = STEPS,
    splits: Annotated[int, typer.Option(help="Of the rows.")] = SPLITS,
    finished: Annotated[
        bool, typer.Option(help="Show the tables whose runs are all in the log, and make none.")
    ] = False,
) -> None:
    """Compare density estimators on real tables."""
    torch.set_num_threads(threads)
    names = tuple(tables())
    if fast:
        steps, splits, names = 2, 1, FEW
    study = Study(Runs(log, missing=MISSING if finished else None), steps, splits, names)
    options = f"--steps {steps} --splits {splits}" if (steps, splits) != (STEPS, SPLITS) else ""
    if finished:
        study = replace(study, names=tuple(filter(study.has, names)))
        options += " --finished"
    page = body(study)
    origin = study.runs.origin()
    publish("tables", "Tables", page, options, fast=fast, write=write, origin=origin)


if __name__ == "__main__":
    typer.run(main)

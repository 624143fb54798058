"""The command ``pyro-iresnet``: fit, score, sample and inspect tables."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .diagnostics import certificate
from .errors import ArgumentError, IResNetError, check_probability
from .tables import Category, Column, DensityEstimator, HeavyTailed, Integer, Real

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)
console = Console(stderr=True)

Model = Annotated[Path, typer.Argument(help="A file that fit wrote.")]
Context = Annotated[Path | None, typer.Option(help="A table of the context of each row.")]
Seed = Annotated[int, typer.Option(help="Decides every random choice.", min=0, max=2**63 - 1)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]

KINDS = "real, positive, heavy-tailed, integer, count, category, real:LOW:HIGH or integer:LOW:HIGH"


@app.command()
def fit(
    table: Annotated[Path, typer.Argument(help="A .csv, .csv.gz, .tsv, .parquet or .npy file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file of the model.")],
    steps: Annotated[int, typer.Option(help="The most steps of training.", min=1)] = 5000,
    columns: Annotated[
        list[str] | None, typer.Option(help=f"NAME=KIND, once for each column; KIND is {KINDS}.")
    ] = None,
    context: Context = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Fit the density of a table, and write the model."""
    with _errors_as_exit():
        _check_folder(output)
        torch.manual_seed(seed)
        kinds = _kinds(columns or [])
        estimator = DensityEstimator(kinds or None, max_steps=steps, progress=not quiet)
        estimator.fit(table, context=context)
        estimator.save(output)
        best = min(estimator.history_.validation)
        _say(f"held-out rows: mean log-density {-best:.3f} nats; wrote {output}", quiet)


@app.command()
def score(
    model: Model,
    table: Annotated[Path, typer.Argument(help="Rows with the columns of the fit.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .csv or .parquet file.")],
    anomaly: Annotated[
        float | None,
        typer.Option(help="Mark rows less likely than this share of the held-out rows of the fit."),
    ] = None,
    context: Context = None,
    quiet: Quiet = False,
) -> None:
    """Write the log-density of each row, nats in the units of the table."""
    with _errors_as_exit():
        _check_output(output)
        if anomaly is not None:
            check_probability(anomaly, "--anomaly")
        estimator = _loaded(model, context)
        least = -math.inf if anomaly is None else estimator.threshold(anomaly)
        scores = pd.DataFrame({"log_density": estimator.score_samples(table, context)})
        told = f"{len(scores)} rows: mean log-density {scores['log_density'].mean():.3f} nats"
        if anomaly is not None:
            scores["anomaly"] = scores["log_density"] < least
            told += f", {scores['anomaly'].to_numpy().sum()} anomalies"
        _write(scores, output)
        _say(f"{told}; wrote {output}", quiet)


@app.command()
def sample(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .csv or .parquet file.")],
    number: Annotated[
        int, typer.Option("--number", "-n", help="Rows, for each row of a context.", min=1)
    ] = 1000,
    context: Context = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Draw rows, and write them with the columns of the fit."""
    with _errors_as_exit():
        _check_output(output)
        estimator = _loaded(model, context)
        torch.manual_seed(seed)
        drawn = estimator.sample(number, context)
        if isinstance(drawn, np.ndarray):
            drawn = pd.DataFrame(drawn).rename(columns="x{}".format)
        _write(drawn, output)
        _say(f"wrote {len(drawn)} rows to {output}", quiet)


@app.command()
def inspect(model: Model) -> None:
    """Print the columns, the course of training, and the proven bounds of a model."""
    with _errors_as_exit():
        estimator = DensityEstimator.load(model)
        shown = Console()
        columns = Table("column", "kind", "dtype", title=str(model))
        for column in estimator.encoding_.columns:
            columns.add_row(*map(escape, (column.name, repr(column.kind), column.dtype)))
        shown.print(columns)
        history = estimator.history_
        best = int(np.argmin(history.validation))
        shown.print(
            f"{history.steps[-1]} steps; kept step {history.steps[best]}: "
            f"mean log-density {-history.validation[best]:.3f} nats on held-out rows.",
            highlight=False,
        )
        shown.print(
            str(certificate(estimator.flow_)), soft_wrap=True, highlight=False, markup=False
        )


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def demo(context: typer.Context) -> None:
    """Density estimation and a guide at work; its options: demo --help."""
    from .demo.cli import app as demo_app  # noqa: PLC0415  (needs another extra)

    demo_app(context.args)


def _kinds(columns: list[str]) -> dict[str, Column]:
    found: dict[str, Column] = {}
    for text in columns:
        name, kind = _declared(text)
        if name in found:
            raise ArgumentError(f"Expected --columns once for each column; got {name!r} twice.")
        found[name] = kind
    return found


def _declared(text: str) -> tuple[str, Column]:
    """Read NAME=KIND."""
    name, equals, told = text.rpartition("=")
    kind, *limits = told.split(":")
    try:
        low, high = limits or ("", "")
        match kind if equals else "":
            case "real":
                return name, Real(*(float(x) if x else None for x in (low, high)))
            case "integer":
                return name, Integer(*(int(x) if x else None for x in (low, high)))
            case "positive" | "count" | "heavy-tailed" | "category" if not limits:
                made = {
                    "positive": Real(low=0.0),
                    "count": Integer(low=0),
                    "heavy-tailed": HeavyTailed(),
                    "category": Category(),
                }
                return name, made[kind]
    except ValueError as error:
        if isinstance(error, IResNetError):
            raise
    raise ArgumentError(f"Expected --columns NAME=KIND, with KIND one of {KINDS}; got {text!r}.")


def _check_output(path: Path) -> None:
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ArgumentError(f"Expected --output to be a .csv or .parquet file; got {path}.")
    _check_folder(path)


def _check_folder(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentError(
            f"Expected --output to be a file in a folder that is there; got {path}."
        )


def _write(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix.lower() == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)


def _loaded(model: Path, context: Path | None) -> DensityEstimator:
    """Read a model, or raise unless a context is given where the fit had one."""
    estimator = DensityEstimator.load(model)
    if (context is None) != (estimator.model_.context is None):
        has, got = ("--context FILE", "none") if context is None else ("no --context", context)
        raise ArgumentError(f"Expected {has}, as in the fit of {model}; got {got}.")
    return estimator


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        # Without markup: brackets in a column or file name are the user's.
        console.print(text, soft_wrap=True, highlight=False, markup=False)


@contextlib.contextmanager
def _errors_as_exit() -> Iterator[None]:
    """Print an error in words, and leave with the exit status 2."""
    try:
        yield
    except (IResNetError, OSError) as error:
        console.print(f"Error: {error}", soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(2) from error

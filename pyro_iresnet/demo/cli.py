"""The command line of the demo."""

import json
from pathlib import Path
from typing import Annotated, Any

import pyro
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import ArgumentError, IResNetError
from . import checkerboard, density, eight_schools

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)

WIDTH = 116
STEPS = {"density": 1500, "checkerboard": 2000, "eight_schools": 1200}


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where to write pictures and metrics.json.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(help="Decides every random choice.", min=0)] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Training steps of each model, instead of its own.", min=1)
    ] = None,
) -> None:
    """Density estimation with nflows and with Pyro, and a variational guide: i-ResNets at work."""
    console = Console()
    # A pipe reports a width of 80, which would cut the table.
    console.width = max(console.width, WIDTH)
    try:
        rows, files = run(console, output, seed, steps)
    except IResNetError as error:
        _say(console, f"Error: {error}")
        raise typer.Exit(2) from error
    console.print(_table(rows))
    metrics = output / "metrics.json"
    metrics.write_text(json.dumps({"seed": seed, "results": rows}, indent=2) + "\n")
    for path in [*files, metrics]:
        _say(console, f"wrote {path}")


def run(
    console: Console, output: Path, seed: int, steps: int | None
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Run the three parts, each from the same seed; return their rows and the files written."""
    pyro.set_rng_seed(seed)
    _make_folder(output)
    rows, files = density.run(steps or STEPS["density"], output)
    pyro.set_rng_seed(seed)
    more, pictures = checkerboard.run(steps or STEPS["checkerboard"], output)
    rows, files = rows + more, files + pictures
    pyro.set_rng_seed(seed)
    more, pictures, summary = eight_schools.run(steps or STEPS["eight_schools"], output)
    console.print("\nArviZ summary of AutoIResNet on the eight schools")
    console.print(summary.to_string(), highlight=False)
    return rows + more, files + pictures


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"Expected --output to be a folder that can be made; {output}: {error.strerror}."
        ) from error


def _say(console: Console, text: str) -> None:
    # Without markup: brackets in the name of a folder are the user's.
    console.print(text, soft_wrap=True, highlight=False, markup=False)


COLUMNS = {
    "data": ("data", "{}"),
    "model": ("model", "{}"),
    "held_out_nats": ("nats", "{:.3f}"),
    "held_out_bits_per_dim": ("bits/dim", "{:.3f}"),
    "elbo": ("ELBO", "{:.3f}"),
    "kl_to_posterior": ("KL", "{:.3f}"),
    "psis_k_hat": ("k-hat", "{:.2f}"),
    "parameters": ("parameters", "{:,}"),
    "seconds": ("seconds", "{:.1f}"),
}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="Held-out negative log-likelihood, and guides of the eight schools",
        caption="Lower is better, but for the ELBO. KL is to the exact posterior; a k-hat above "
        "0.7 warns.",
        box=box.SIMPLE_HEAD,
    )
    for key, (heading, _) in COLUMNS.items():
        justify = "left" if key in ("data", "model") else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for row in rows:
        cells = [form.format(row[key]) if key in row else "" for key, (_, form) in COLUMNS.items()]
        table.add_row(*cells)
    return table

"""Runs of benchmark scripts, and the tables that they print."""

from collections.abc import Callable

import typer.testing


def run(main: Callable[..., None], *options: str):
    """Call a script with options, as a shell does."""
    app = typer.Typer()
    app.command()(main)
    return typer.testing.CliRunner().invoke(app, list(options))


def cells(output: str) -> list[list[str]]:
    """Return the cells of each line of the tables in a text."""
    return [line.split("|")[1:-1] for line in output.splitlines() if line.startswith("|")]

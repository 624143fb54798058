"""Tables of results, printed and kept in the pages of ``benchmarks/results/``."""

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from . import measure

# Options of every script.
Fast = Annotated[bool, typer.Option(help="Reduce the run, to see that the script works.")]
Write = Annotated[bool, typer.Option(help="Write the page of the result.")]
Kept = Annotated[Path | None, typer.Option(help="Keep finished runs here, and go on from there.")]
Threads = Annotated[int, typer.Option(help="Threads of torch.")]

RESULTS = Path(__file__).parent.parent / "results"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Make a Markdown table."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = (c.ljust(w) for c, w in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def publish(
    name: str,
    title: str,
    body: str,
    options: str = "",
    *,
    fast: bool,
    write: bool,
    origin: str = "",
) -> None:
    """Print the page of a script, and write it in the place of its last version.

    ``results/index.md`` lists the pages; a new page needs a line there.

    Arguments:
        name: the name of the script.
        title: the heading.
        body: tables and their notes, with headings of the second level.
        options: the options of the command that shaped the result.
        fast: True for a reduced run, which is never written.
        write: True to write the page.
        origin: commit, machine and versions of the runs; by default those of now.
    """
    command = " ".join(["python", "-m", f"benchmarks.run.{name}", *options.split(), "--write"])
    made = f"`{command}` on {date.today()} at {origin or measure.origin()}."
    page = f"# {title}\n\n{made}\n\n{body.strip()}\n"
    print(page)
    if fast and write:
        print("A reduced run is not written.")
    elif write:
        (RESULTS / f"{name}.md").write_text(page)

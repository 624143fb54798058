"""Tables of results, printed and kept in ``benchmarks/RESULTS.md``."""

import re
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from .measure import machine

# The options that every script has.
Fast = Annotated[bool, typer.Option(help="A reduced run, to see that it works.")]
Write = Annotated[bool, typer.Option(help="Put the result into RESULTS.md.")]
Kept = Annotated[Path | None, typer.Option(help="Keep finished runs here, and go on from them.")]
Threads = Annotated[int, typer.Option(help="Threads of torch.")]

RESULTS = Path(__file__).parent / "RESULTS.md"
HEAD = """# Benchmark results

Every table names the command that made it and the machine it ran on; `make bench` makes them all.
Lower is better, but where a goal says `>=`. Times of one table come from one process, all
contenders in turn, unless the section says otherwise.
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = (c.ljust(w) for c, w in zip(cells, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def publish(
    name: str, title: str, body: str, options: str = "", *, fast: bool, write: bool
) -> None:
    """Print a section, and put it in the place of its last version.

    Arguments:
        name: of the script.
        title: the heading.
        body: tables and what they say.
        options: of the command, that made the result what it is.
        fast: a reduced run, which is never written.
        write: whether to write.
    """
    command = " ".join(["python", "-m", f"benchmarks.{name}", *options.split(), "--write"])
    section = f"## {title}\n\n`{command}` on {date.today()}: {machine()}.\n\n{body.strip()}\n"
    print(section)
    if fast and write:
        print("A reduced run is not written.")
    elif write:
        text = RESULTS.read_text() if RESULTS.exists() else HEAD
        marked = f"<!-- {name} -->\n{section}<!-- end of {name} -->\n"
        pattern = re.compile(f"<!-- {name} -->.*?<!-- end of {name} -->\n", re.DOTALL)
        found = pattern.search(text)
        RESULTS.write_text(
            text[: found.start()] + marked + text[found.end() :] if found else f"{text}\n{marked}"
        )

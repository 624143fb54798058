"""Count habits of prose and of names that slow a reader down, and hold them to limits.

Run from the project's root::

    python tools/prose.py
    python tools/prose.py --list

The exit status is 1 where a figure exceeds its limit.
"""

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyro_iresnet"
OPENERS = ("What", "Whether", "Where", "That", "Those", "Of", "As", "How")
PRONOUNS = ("that", "those", "its", "it")
WORD = re.compile(r"[A-Za-z']+")
FENCED = re.compile(r"```.*?```", re.DOTALL)
# A docstring is prose up to its first example or reference.
END_OF_PROSE = re.compile(r"\n\s*(?:Example|References):")
# Characters of a line that ``--list`` shows.
SHOWN = 90


@dataclass(frozen=True)
class Text:
    """A piece of prose.

    Arguments:
        path: the file.
        line: the first line of the text.
        prose: the text itself.
        docstring: whether the text is a docstring.
    """

    path: Path
    line: int
    prose: str
    docstring: bool = False

    @property
    def words(self) -> list[str]:
        return WORD.findall(self.prose)

    @property
    def opener(self) -> str | None:
        """The first word of a docstring, if ``OPENERS`` has it."""
        if not self.docstring or self.prose.lstrip()[:1] in ("", "`", ":"):
            return None
        first = next(iter(self.words), None)
        return first if first in OPENERS else None

    def count(self, *words: str) -> int:
        """Count words, in lower case or upper case."""
        found = [word.lower() for word in self.words]
        return sum(found.count(word) for word in words)

    def place(self, habit: str) -> str:
        """Say where a habit is: file, line, habit, and the first line of the text."""
        first = self.prose.strip().splitlines()[0][:SHOWN]
        return f"{self.path.relative_to(ROOT)}:{self.line}: {habit}: {first}"


@dataclass(frozen=True)
class Figure:
    """A measured habit beside its limit.

    Arguments:
        name: the habit, with its unit.
        value: the measured number.
        limit: the largest allowed number.
        places: a line for each place where the habit is.
    """

    name: str
    value: float
    limit: float
    places: list[str]

    @property
    def exceeds(self) -> bool:
        return self.value > self.limit

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.4g}, limit {self.limit:g}"


def docstrings(path: Path) -> Iterator[Text]:
    """Yield the docstrings of a file, without examples and references."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = ast.get_docstring(node)
            if found:
                prose = END_OF_PROSE.split(found)[0]
                yield Text(path, getattr(node, "lineno", 1), prose, docstring=True)


def comments(path: Path) -> Iterator[Text]:
    """Yield the comments of a file, each line by itself."""
    with path.open() as lines:
        for token in tokenize.generate_tokens(lines.readline):
            if token.type == tokenize.COMMENT:
                yield Text(path, token.start[0], token.string.lstrip("# "))


def pages() -> Iterator[Text]:
    """Yield the Markdown pages of the project, without code."""
    heads = (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))
    for path in (*heads, *sorted((ROOT / "docs").rglob("*.md"))):
        yield Text(path, 1, FENCED.sub("", path.read_text()))


def texts() -> list[Text]:
    """Collect docstrings and comments of the package, and pages."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        found += [*docstrings(path), *comments(path)]
    return [*found, *pages()]


def per_thousand(found: list[Text], *words: str) -> float:
    """Count words in a thousand."""
    return 1000 * sum(text.count(*words) for text in found) / sum(len(text.words) for text in found)


def tests() -> list[tuple[str, str]]:
    """Collect the places and the names of all tests."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node.name)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def words_in(test: str) -> int:
    """Count the words of a test's name behind ``test_``."""
    return len(test.removeprefix("test_").split("_"))


def public_names() -> list[str]:
    """Read ``pyro_iresnet.__all__`` without an import of the package."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and "__all__" in [ast.unparse(t) for t in node.targets]:
            return list(ast.literal_eval(node.value))
    raise LookupError("pyro_iresnet/__init__.py assigns no __all__.")


def figures(found: list[Text]) -> list[Figure]:
    """Measure every habit that has a limit."""
    headed = [text for text in found if text.docstring]
    opened = [text for text in headed if text.opener]
    named, public = tests(), public_names()
    longest_first = sorted(named, key=lambda test: -words_in(test[1]))
    limit = 4
    return [
        Figure(
            '"what" in 1,000 words',
            per_thousand(found, "what"),
            1.0,
            [text.place(f"what x{n}") for text in found if (n := text.count("what"))],
        ),
        Figure(
            f"docstrings with an opener such as What or Of, % of {len(headed)}",
            100 * len(opened) / len(headed),
            1.0,
            [text.place(f"opens with {text.opener}") for text in opened],
        ),
        Figure(
            f"words in the name of a test, median of {len(named)}",
            median(words_in(name) for _, name in named),
            limit,
            [f"{place}: {name}" for place, name in longest_first if words_in(name) > limit],
        ),
        Figure("names in pyro_iresnet.__all__", len(public), 32, public),
    ]


Listed = Annotated[bool, typer.Option("--list", help="Show the places of every habit.")]


def main(listed: Listed = False) -> None:
    """Measure the habits; exit with 1 where a limit is exceeded."""
    found = texts()
    measured = figures(found)
    for figure in measured:
        print(figure)
        if listed:
            print(*(f"  {place}" for place in figure.places), sep="\n")
    print(f"for scale, that/those/it/its in 1,000 words: {per_thousand(found, *PRONOUNS):.4g}")
    excesses = [figure for figure in measured if figure.exceeds]
    if excesses:
        print("\n".join(f"Over the limit: {figure}." for figure in excesses), file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

"""Give wrong input to every public callable, and write the answers as a page of the documentation.

Run from the project's root::

    OMP_NUM_THREADS=1 python -W ignore tools/bad_input.py

The arguments come from the signatures of the callables. A recipe gives right arguments of each
callable; each cell of the table replaces one of them by a wrong one. The exit status is 1 if a cell
breaks the rule of :attr:`Cell.fault`.
"""

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from bad_input_settings import WITHOUT, builders, settings
from bad_input_tensors import Call, calls, tensors
from torch import Tensor

from pyro_iresnet import IResNetError

PAGE = Path(__file__).parent.parent / "docs" / "bad-input.md"
# Characters of an error that a cell of the page shows.
LONGEST = 120
PYTHONS_OWN = re.compile(r"unexpected keyword argument|missing \d+ required|positional argument")


@dataclass(frozen=True)
class Cell:
    """The answer to one wrong argument.

    Arguments:
        call: the words of the callable.
        argument: the name of the argument.
        given: the words of the wrong value.
        error: the exception, or None for an answer.
        answer: the words of the answer.
        allowed: False if no answer to this value can be right.
    """

    call: str
    argument: str
    given: str
    error: Exception | None
    answer: str
    allowed: bool

    @property
    def fault(self) -> str | None:
        """Say how the cell breaks the rule: a right answer, or an error in words of the package."""
        where = f"{self.call}, {self.argument} = {self.given}"
        if self.error is None:
            return None if self.allowed else f"{where}: answered {self.answer}"
        if isinstance(self.error, IResNetError):
            return None
        if isinstance(self.error, TypeError) and PYTHONS_OWN.search(str(self.error)):
            return None
        return f"{where}: {type(self.error).__name__}: {str(self.error)[:LONGEST]}"

    @property
    def words(self) -> str:
        """Return the answer or the error in words, with dots for the value and the argument."""
        if self.error is None:
            return self.answer
        if not isinstance(self.error, IResNetError):
            return f"`{type(self.error).__name__}` of Python"
        words = re.sub(rf"\b{self.argument}\b", "...", " ".join(str(self.error).split()))
        words = re.sub(r"(?<=event shape )\(.*?\)", "(...)", words)
        words = re.sub(r"; got .*?(?=\. [A-Z]|\.?$)", "", words)
        words = re.sub(r"(?<=keywords among ).*?and options", "its arguments", words)
        words = words if len(words) <= LONGEST else words[: LONGEST - 3] + "..."
        return f"`{type(self.error).__name__}`: {words}"


# Arguments of which a number is right, by the words of the number.
RIGHT = {
    "-1": ("seed", "low"),
    "0": (
        *("seed", "cache_size", "atol", "rtol", "spread", "max_plate_nesting", "low", "warmup"),
        "temperature",
    ),
    "[]": ("flow",),
    "{}": ("coords", "dims", "columns", "trainer", "example"),
    "tensor(1.5)": ("atol",),
}
BOUNDED = ("lipschitz", "p")
# Arguments that a call takes and does not read.
UNREAD = (("Exact()(...)", "lipschitz"), ("PowerSeries()(...)", "lipschitz"))


def may_answer(call: str, given: str, parameter: inspect.Parameter) -> bool:
    """Return True if a wrong setting may be right for a parameter, by its name and annotation."""
    kind, name = str(parameter.annotation), parameter.name
    if name in RIGHT.get(given, ()) or (call, name) in UNREAD:
        return True
    if given == "None":
        return "None" in kind or parameter.default is None
    if given == "tensor(3)":
        return "int" in kind or "SupportsIndex" in kind
    if given == "1.5":
        return "float" in kind and name not in BOUNDED
    if given == "[]":
        return "Sequence" in kind
    if given == "a class":
        # A callable is called later.
        return "Callable" in kind
    return given == "True" and "bool" in kind


def outcome(
    function: Callable[..., Any], *arguments: Any, **keywords: Any
) -> tuple[Any, Exception | None]:
    """Return the result of a call, or its error."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments, **keywords), None
    except Exception as error:
        return None, error


def cells_of_settings() -> Iterator[Cell]:
    """Yield the cells of wrong settings."""
    torch.manual_seed(0)
    wrong = settings()
    for name, (function, given) in builders().items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD or parameter.name == "args":
                continue
            for words, value in wrong.items():
                if parameter.kind is parameter.VAR_POSITIONAL:
                    error = outcome(function, value)[1]
                else:
                    error = outcome(function, **{**given, parameter.name: value})[1]
                allowed = may_answer(name, words, parameter)
                yield Cell(name, parameter.name, words, error, "accepted", allowed)
        error = outcome(function, **given, unknown=1)[1]
        yield Cell(name, "an unknown keyword", "1", error, "accepted", False)


def cells_of_tensors() -> Iterator[Cell]:
    """Yield the cells of wrong tensors."""
    torch.manual_seed(0)
    for name, call in calls().items():
        error = outcome(call.function, *call.arguments.values())[1]
        if error is not None:
            raise error
        for argument, value in call.arguments.items():
            for words, wrong in tensors(value).items():
                given = {**call.arguments, argument: wrong}
                result, error = outcome(call.function, *given.values())
                answer, allowed = ("", False)
                if error is None:
                    answer, allowed = judge(call, argument, words, wrong, result)
                yield Cell(name, argument, words, error, answer, allowed)


def judge(call: Call, argument: str, words: str, wrong: Any, result: Any) -> tuple[str, bool]:
    """Say how an answer looks, and return True if it may be right."""
    found, free = parts_of(result), words in call.whatever
    if words in ("expanded", "not contiguous"):
        plain = {**call.arguments, argument: wrong.contiguous()}
        expected = parts_of(outcome(call.function, *plain.values())[0])
        pairs = zip(found, expected, strict=True)
        same = all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
        return ("as contiguous", True) if same else ("other numbers than contiguous", False)
    if words in ("NaN", "infinity"):
        if all(bool(part.isfinite().all()) for part in found):
            return "finite", free
        if call.mixes:
            return "not finite", True
        rows = torch.stack([p.isfinite().reshape(len(p), -1).all(1) for p in found]).all(0)
        alone = rows.tolist() == [True, False, True, True]
        return "not finite" + ", in its sample alone" * alone, free or (alone and not call.solves)
    if words in ("1e30", "denormals", "no rows"):
        finite = all(bool(part.isfinite().all()) for part in found)
        shapes = [str(tuple(part.shape)) for part in found]
        ends = f", shape {', '.join(shapes)}" if words == "no rows" and found else ""
        return ("finite" if finite else "not finite") + ends, finite
    return "an answer", free


def parts_of(result: Any) -> list[Tensor]:
    """Return the tensors of an answer that have values."""
    if isinstance(result, Tensor):
        return [] if result.is_meta else [result.detach()]
    if isinstance(result, tuple):
        return [part for one in result for part in parts_of(one)]
    value = getattr(result, "value", None)
    return [] if value is None else parts_of(value)


def table() -> list[Cell]:
    """Make all cells; the default dtype is float32, as on the page."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return [*cells_of_settings(), *cells_of_tensors()]
    finally:
        torch.set_default_dtype(before)


HEAD = """# Answers to bad input

<!-- Written by tools/bad_input.py. Do not edit. -->

Every public callable of the package, given wrong input: one argument at a time, the others right.
Each row shows the answer, or the class of the error and its words. A wrong argument gives an
[`IResNetError`](reference/errors.md), or the `TypeError` of Python for an unknown keyword. Finite
numbers never come of NaN: a forward pass shows NaN in the sample that holds it, and an inverse
raises. A test makes the {cells} cells anew and compares them with this page.

Arguments with the same answers share a table. Dots stand for the name of the argument and for
its size; the value that an error names is left out, and so are words behind {longest} characters.
The default dtype is float32.
"""


def page(cells: list[Cell]) -> str:
    """Write the cells as Markdown, one table for all arguments with the same answers."""
    lines = [HEAD.format(longest=LONGEST, cells=len(cells))]
    of_tensors = set(calls())
    for title, inside in (("Settings", False), ("Tensors", True)):
        lines += [f"## {title}", ""]
        answers: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for cell in cells:
            if (cell.call in of_tensors) == inside:
                answers.setdefault((cell.call, cell.argument), []).append((cell.given, cell.words))
        alike: dict[tuple[tuple[str, str], ...], list[tuple[str, str]]] = {}
        for place, rows in answers.items():
            alike.setdefault(tuple(rows), []).append(place)
        for rows, places in alike.items():
            lines += [*_heading(places), "", "    | given | answer |", "    | --- | --- |"]
            by_answer: dict[str, list[str]] = {}
            for given, words in rows:
                by_answer.setdefault(words, []).append(given)
            lines += [f"    | {', '.join(v)} | {_escaped(k)} |" for k, v in by_answer.items()]
            lines.append("")
    lines += ["## Names without a row", "", "Base classes and errors have no rows, nor have:", ""]
    by_reason: dict[str, list[str]] = {}
    for name, reason in WITHOUT.items():
        by_reason.setdefault(reason, []).append(f"`{name}`")
    lines += [f"- {reason}: {', '.join(names)}" for reason, names in by_reason.items()]
    return "\n".join(lines) + "\n"


def _heading(places: list[tuple[str, str]]) -> list[str]:
    """Write the callables with their arguments; many of them stand below the first."""
    named = [f"{call}: {argument}" for call, argument in places]
    if len(named) == 1:
        return [f'??? note "{named[0]}"']
    listed = ", ".join(f"`{name}`" for name in named)
    return [f'??? note "{named[0]}, and {len(named) - 1} more"', "", f"    {listed}"]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def main() -> None:
    """Write the page; exit with 1 if a cell breaks the rule."""
    cells = table()
    faults = [fault for cell in cells if (fault := cell.fault) is not None]
    PAGE.write_text(page(cells))
    print(f"{len(cells)} cells, {len(faults)} faults, {PAGE.stat().st_size // 1000} kB")
    if faults:
        print("\n".join(faults), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Count the Python calls into the package on the way of one batch, and hold them to limits.

Run from the project's root::

    OMP_NUM_THREADS=1 python -W ignore tools/calls.py
    OMP_NUM_THREADS=1 python -W ignore tools/calls.py --list inverse

The exit status is 1 where a row exceeds a limit.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import pyro.distributions as dist
import torch
import typer
from pyro.distributions import transforms

import pyro_iresnet as ir

OURS = str(Path(ir.__file__).parent)
PYRO = str(Path(transforms.__file__).parent)
# Functions that ``--list`` shows.
SHOWN = 30

Work = Callable[[], object]


class Row(StrEnum):
    """A row of the table, by the name that ``--list`` takes."""

    BLOCK = "block"
    INVERSE = "inverse"
    NFLOWS = "nflows"
    STACK = "stack"
    SCALE = "scale"


TITLES = {
    Row.BLOCK: "Pyro block: y and log-det",
    Row.INVERSE: "Pyro block: inverse",
    Row.NFLOWS: "nflows block: forward",
    Row.STACK: "Pyro stack of 8: log_prob",
    Row.SCALE: "for scale, Pyro affine_autoregressive",
}


@dataclass(frozen=True)
class Limit:
    """The most calls, and the most files, that a row may have.

    Arguments:
        calls: Python calls into the package.
        files: different files of the called functions, or None for any number.
    """

    calls: int
    files: int | None = None


LIMITS = {
    Row.BLOCK: Limit(110, files=25),
    # With the sine of the default; the number of iterations decides.
    Row.INVERSE: Limit(317, files=36),
    Row.NFLOWS: Limit(82),
    Row.STACK: Limit(786),
}


@dataclass(frozen=True)
class Count:
    """Calls of each function.

    Arguments:
        functions: the number of calls, by file and name.
    """

    functions: Counter[tuple[str, str]]

    @classmethod
    def of(cls, work: Work, root: str = OURS) -> "Count":
        """Count the calls that ``work()`` makes to functions below the folder ``root``."""
        functions: Counter[tuple[str, str]] = Counter()

        def hook(frame: FrameType, event: str, argument: object) -> None:
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(root):
                functions[code.co_filename, code.co_name] += 1

        sys.setprofile(hook)
        try:
            work()
        finally:
            sys.setprofile(None)
        return cls(functions)

    @property
    def calls(self) -> int:
        return self.functions.total()

    @property
    def files(self) -> int:
        return len({file for file, _ in self.functions})

    def __str__(self) -> str:
        return f"{self.calls} calls, {len(self.functions)} functions, {self.files} files"

    def most_frequent(self, count: int) -> str:
        """List the functions with the most calls, a line for each."""
        return "\n".join(
            f"{calls:6d}  {Path(file).relative_to(Path(OURS).parent)}: {name}"
            if file.startswith(OURS)
            else f"{calls:6d}  {Path(file).name}: {name}"
            for (file, name), calls in self.functions.most_common(count)
        )

    def excesses(self, limit: Limit) -> list[str]:
        """Name the figures above their limits."""
        found = [("calls", self.calls, limit.calls), ("files", self.files, limit.files)]
        return [
            f"{value} {unit}, more than {most}"
            for unit, value, most in found
            if most is not None and value > most
        ]


def works() -> dict[Row, tuple[Work, str]]:
    """Make one batch of work for each row, with the folder whose calls count."""
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    block = ir.iresnet(2, [64, 64])
    in_nflows = ir.IResNetTransform(2, 64)
    stack = ir.iresnet_stack(2, 8, [64, 64])
    stack(torch.randn(100, 2))
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    flow = dist.TransformedDistribution(base, [stack.inv])
    autoregressive = transforms.affine_autoregressive(2, [64])

    def forward(transform: transforms.Transform, z: torch.Tensor) -> None:
        transform.log_abs_det_jacobian(z, transform(z))

    # A fresh tensor for each call, or the block answers from its cache.
    made = {
        Row.BLOCK: (lambda: forward(block, x.clone()), OURS),
        Row.INVERSE: (lambda: block.inv(x.clone()), OURS),
        Row.NFLOWS: (lambda: in_nflows(x), OURS),
        Row.STACK: (lambda: flow.log_prob(x.clone()), OURS),
        Row.SCALE: (lambda: forward(autoregressive, x), PYRO),
    }
    # First calls are set-up.
    for row in (Row.BLOCK, Row.STACK, Row.NFLOWS, Row.INVERSE):
        made[row][0]()
    return made


Listed = Annotated[
    Row | None, typer.Option("--list", help="Show the most frequent functions of one row.")
]


def main(listed: Listed = None) -> None:
    """Count the calls of each row; exit with 1 where a limit is exceeded."""
    counts = {row: Count.of(work, root) for row, (work, root) in works().items()}
    for row, count in counts.items():
        print(f"{TITLES[row]}: {count}")
    if listed is not None:
        print(f"\n{TITLES[listed]}:\n{counts[listed].most_frequent(SHOWN)}")
    excesses = [
        f"{TITLES[row]}: {excess}"
        for row, limit in LIMITS.items()
        for excess in counts[row].excesses(limit)
    ]
    if excesses:
        print("\n".join(f"Over the limit: {excess}." for excess in excesses), file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

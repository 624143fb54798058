"""Finished runs, kept in a file so that a long benchmark can go on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from . import measure

T = TypeVar("T")


class Runs(Generic[T]):
    """Results of runs, by name, with the commit and the machine of each.

    Arguments:
        path: the file, with one line of JSON for each run; None to keep nothing. Several
            processes may write to the file at once, each its own runs.
        missing: the answer for a run that is not kept; None to run it then.
    """

    def __init__(self, path: Path | None, *, missing: T | None = None) -> None:
        self.path, self.missing = path, missing
        self.found: dict[str, T] = {}
        self.origins: dict[str, str] = {}
        self._used: set[str] = set()

    def get(self, name: str, run: Callable[[], T]) -> T:
        """Return the kept result, or that of ``run()``, which JSON must be able to hold."""
        if name not in self.found:
            self._read()
        if name not in self.found and self.missing is not None:
            return self.missing
        if name not in self.found:
            self.found[name], self.origins[name] = run(), measure.origin()
            if self.path is not None:
                line = json.dumps([name, self.found[name], self.origins[name]])
                with self.path.open("a") as lines:
                    lines.write(line + "\n")
        self._used.add(name)
        return self.found[name]

    def origin(self) -> str:
        """Tell the commits and the machines of the runs that were asked for."""
        found = {self.origins[name] for name in self._used if name in self.origins}
        return "; ".join(sorted(found))

    def processor(self, name: str) -> str:
        """Return the processor of a kept run, as :func:`measure.origin` names it, or ``""``."""
        return self.origins.get(name, "").partition(": ")[2].partition(",")[0]

    def _read(self) -> None:
        if self.path is not None and self.path.exists():
            for line in self.path.read_text().splitlines():
                name, value, *origin = json.loads(line)
                self.found[name] = value
                if origin:
                    self.origins[name] = origin[0]

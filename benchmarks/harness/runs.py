"""Finished runs, kept in a file so that a long benchmark can go on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Runs(Generic[T]):
    """Results of runs, by name.

    Arguments:
        path: the file, with one line of JSON for each run; None to keep nothing. Several
            processes may write to the file at once, each its own runs.
        missing: the answer for a run that is not kept; None to run it then.
    """

    def __init__(self, path: Path | None, *, missing: T | None = None) -> None:
        self.path, self.missing = path, missing
        self.found: dict[str, T] = {}

    def get(self, name: str, run: Callable[[], T]) -> T:
        """Return the kept result, or that of ``run()``, which JSON must be able to hold."""
        if name not in self.found:
            self._read()
        if name not in self.found and self.missing is not None:
            return self.missing
        if name not in self.found:
            self.found[name] = run()
            if self.path is not None:
                with self.path.open("a") as lines:
                    lines.write(json.dumps([name, self.found[name]]) + "\n")
        return self.found[name]

    def _read(self) -> None:
        if self.path is not None and self.path.exists():
            self.found |= dict(json.loads(line) for line in self.path.read_text().splitlines())

"""Rows of a table as numbers, with labels by their position in a list."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import ArgumentError
from .cells import (
    are_text,
    as_read,
    as_text,
    check_labels,
    check_present,
    dtype_name,
    holds_labels,
    is_text,
    numbers,
    plain,
    positions,
    some,
)
from .columns import Category, Values
from .reading import Source

# The fewest rows of a fit.
LEAST = 10
COMMA = re.compile(r"[-+]?\d+(,\d+)+")
THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+")
# More labels than this, most of them in one row, are names or badly read numbers.
FEW_LABELS = 20


@dataclass(frozen=True)
class Rows:
    """Rows of a table.

    Arguments:
        names: the names of the columns.
        dtypes: their dtypes, by the names of numpy and pandas.
        labels: the labels of a column that is no number; None for a column of numbers.
        levels: the categories of a column of pandas categories, used or not; None for others.
        values: the numbers, shape ``(n, D)``.
        is_array: True if the columns had no names of their own.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    labels: tuple[tuple[Any, ...] | None, ...]
    levels: tuple[tuple[Any, ...] | None, ...]
    values: Values
    is_array: bool


def read(source: Source, declared: Mapping[str, object], scratch: Path) -> Rows:
    """Read all rows.

    Arguments:
        source: the table.
        declared: kinds of columns by name; a column that is a :class:`Category` may hold numbers.
        scratch: a file for the numbers, so that they need not fit into memory.

    Raises:
        ArgumentError: no column or row, two columns of one name, a missing or infinite value, a
            value that is neither a number nor a label.
    """
    reader: _Reader | None = None
    text = _labels_in_text(source, declared) if source.is_csv else ()
    with scratch.open("wb") as file:
        for part in source.parts(text):
            if reader is None:
                reader = _Reader(source, part, declared)
            reader.numbers(part).tofile(file)
    count = 0 if reader is None else reader.count
    if reader is None or count < LEAST:
        raise ArgumentError(
            f"Expected at least {LEAST} rows in {source.label}; got {count} sample(s), "
            f"n_samples={count}."
        )
    values = np.memmap(scratch, np.float64, "r+", shape=(reader.count, len(reader.names)))
    labels = reader.sort_labels(values)
    dtypes, levels = tuple(reader.dtypes), tuple(reader.levels)
    return Rows(reader.names, dtypes, labels, levels, values, source.is_array)


def _labels_in_text(source: Source, declared: Mapping[str, object]) -> list[str]:
    """List the columns of labels, whose cells pandas may read in one way here, in another there."""
    first = next(source.parts(), None)
    if first is None:
        return []
    found: list[str] = []
    whole: list[str] = []
    for name, dtype in zip(names_of(first, source.label), first.dtypes, strict=True):
        kind = declared.get(name)
        if isinstance(kind, Category) and kind.labels is not None:
            # The labels that are given tell how to read a cell.
            in_text = are_text(kind.labels)
        else:
            in_text = isinstance(kind, Category) or holds_labels(dtype, name, source.label)
        if in_text:
            found.append(name)
        elif kind is None and pd.api.types.is_integer_dtype(dtype):
            whole.append(name)
    return found + _codes(source, whole)


def _codes(source: Source, names: Sequence[str]) -> list[str]:
    """List the columns with digits behind a leading 0, such as 01234, which no number keeps."""
    if not names:
        return []
    found: set[str] = set()
    for part in source.parts(names):
        columns = dict(zip(names_of(part, source.label), part.items(), strict=True))
        for name in set(names) - found:
            _, cells = columns[name]
            if bool(cells.astype(str).str.match(r"0\d").any()):
                found.add(name)
    return [name for name in names if name in found]


class _Reader:
    """Reader of parts that have the columns of the first part."""

    def __init__(self, source: Source, first: pd.DataFrame, declared: Mapping[str, object]) -> None:
        self.source, self.count = source, 0
        self.names = names_of(first, source.label)
        self.dtypes = list(map(dtype_name, first.dtypes))
        self.numbered: list[dict[Any, int] | None] = []
        for name, dtype in zip(self.names, first.dtypes, strict=True):
            given = declared.get(name)
            has_labels = holds_labels(dtype, name, source.label)
            if has_labels and given is not None and not isinstance(given, Category):
                raise ArgumentError(
                    f"Expected numbers in the column {name!r} of {source.label}, declared as "
                    f"{given}; got {dtype}. Declare Category(), or make numbers of the column."
                )
            is_label = isinstance(given, Category) or has_labels
            known = given.labels if isinstance(given, Category) else None
            self.numbered.append({v: i for i, v in enumerate(known or ())} if is_label else None)
        self.fixed = [bool(numbered) for numbered in self.numbered]
        self.levels = [
            tuple(map(plain, dtype.categories)) if isinstance(dtype, pd.CategoricalDtype) else None
            for dtype in first.dtypes
        ]
        # A later part may hold labels that look like numbers.
        self.is_text = [is_text(dtype) for dtype in first.dtypes]

    def numbers(self, part: pd.DataFrame) -> Values:
        """Return the numbers of a part, shape ``(n, D)``."""
        names = names_of(part, self.source.label)
        if names != self.names:
            raise ArgumentError(
                f"Expected the columns {some(self.names)} in all of {self.source.label}; got "
                f"{some(names)} from row {self.count + 1} on."
            )
        found = np.empty(part.shape)
        for i, name in enumerate(names):
            column, numbered = part.iloc[:, i], self.numbered[i]
            check_present(column, name, self.source.label, self.count)
            if numbered is None:
                found[:, i] = numbers(column, name, self.source.label, self.count)
                continue
            check_labels(column, name, self.source.label)
            if self.is_text[i]:
                column = column.map(as_text)
            if not self.fixed[i]:
                for label in column.unique():
                    numbered.setdefault(plain(label), len(numbered))
            found[:, i] = positions(column, numbered, name, self.source.label)
        self.count += len(part)
        return found

    def sort_labels(self, values: Values) -> tuple[tuple[Any, ...] | None, ...]:
        """Number labels in their order, where the order is not given; return the labels."""
        found: list[tuple[Any, ...] | None] = []
        for i, numbered in enumerate(self.numbered):
            if numbered is None or self.fixed[i]:
                found.append(None if numbered is None else tuple(numbered))
                continue
            labels = list(numbered)
            if self.source.is_csv:
                labels, self.dtypes[i] = as_read(labels, self.dtypes[i])
            if len(labels) < 2:
                raise ArgumentError(
                    f"Expected columns that vary; {self.names[i]!r} is {labels[0]!r} in every row. "
                    "Drop it."
                )
            if len(labels) > FEW_LABELS and len(labels) > 0.5 * self.count:
                raise ArgumentError(
                    f"Expected labels in the column {self.names[i]!r} of {self.source.label} that "
                    f"repeat, or numbers; got {len(labels)} labels in {self.count} rows, such as "
                    f"{labels[0]!r}. Drop a column of names; write numbers with a decimal point, "
                    "and dates as numbers, such as the days since the first."
                )
            commas = [v for v in labels if isinstance(v, str) and COMMA.fullmatch(v.strip())]
            if commas:
                in_thousands = all(THOUSANDS.fullmatch(v.strip()) for v in commas)
                option = "thousands" if in_thousands else "decimal"
                raise ArgumentError(
                    f"Expected numbers with a decimal point in the column {self.names[i]!r} of "
                    f"{self.source.label}; got {commas[0]!r}. Read the table with "
                    f"pandas.read_csv(..., {option}=',')."
                )
            # Categories have an order of their own.
            known = {label: at for at, label in enumerate(self.levels[i] or ())}
            keys = [(known.get(label, len(labels)), str(type(label)), label) for label in labels]
            order = sorted(range(len(labels)), key=keys.__getitem__)
            place = np.empty(len(labels))
            place[order] = np.arange(len(labels))
            values[:, i] = place[values[:, i].astype(int)]
            found.append(tuple(labels[j] for j in order))
        return tuple(found)


def fixed(source: Source, columns: Sequence[Any], *, names: bool) -> Values:
    """Return the numbers of rows that have the columns of a fit, in the order of the fit.

    Arguments:
        source: the rows.
        columns: the columns, each with a name and labels, or None for numbers.
        names: True to match the columns by name, False by position.
    """
    found: list[Values] = []
    before = 0
    text = [column.name for column in columns if column.labels and are_text(column.labels)]
    for part in source.parts(text):
        found.append(_fixed(part, columns, source, names, before))
        before += len(part)
    return np.concatenate(found)


def _fixed(
    part: pd.DataFrame, columns: Sequence[Any], source: Source, names: bool, before: int
) -> Values:
    wanted = [column.name for column in columns]
    if names and not source.is_array:
        got = names_of(part, source.label)
        missing, extra = [n for n in wanted if n not in got], [n for n in got if n not in wanted]
        if missing or extra:
            raise ArgumentError(
                f"Expected the columns of the fit in {source.label}; "
                f"missing: {some(missing) or 'none'}; not known: {some(extra) or 'none'}."
            )
        part = part.set_axis(list(got), axis=1).reindex(columns=wanted)
    elif part.shape[1] != len(wanted):
        raise ArgumentError(
            f"Expected {len(wanted)} columns in {source.label}, as in the fit; {source.label} has "
            f"{part.shape[1]} features, but DensityEstimator is expecting {len(wanted)} features "
            "as input."
        )
    found = np.empty(part.shape)
    for i, column in enumerate(columns if len(part) else ()):
        values = part.iloc[:, i]
        check_present(values, column.name, source.label, before)
        if column.labels is None:
            found[:, i] = numbers(values, column.name, source.label, before)
        else:
            check_labels(values, column.name, source.label)
            if are_text(column.labels):
                values = values.map(as_text)
            numbered = {label: at for at, label in enumerate(column.labels)}
            found[:, i] = positions(values, numbered, column.name, source.label)
    return found


def names_of(frame: pd.DataFrame, label: str) -> tuple[str, ...]:
    """Return the names of the columns as text, or raise if one is missing or given twice."""
    names = tuple(str(name) for name in frame.columns)
    if not names:
        raise ArgumentError(
            f"Expected columns in {label}; got 0 feature(s) (shape={frame.shape}) while a minimum "
            "of 1 is required."
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArgumentError(
            f"Expected a name of its own for every column of {label}; given twice: {some(twice)}."
        )
    unnamed = [name for name in names if not name.strip() or name.startswith("Unnamed:")]
    if unnamed:
        raise ArgumentError(
            f"Expected a name for every column of {label}; {len(unnamed)} have none, as the index "
            "that pandas writes. Name or drop them (to_csv(index=False))."
        )
    return names

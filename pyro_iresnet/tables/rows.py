"""Rows of a table as numbers, with labels by their position in a list."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import ArgumentError, ArgumentTypeError
from .columns import Category, Values
from .reading import Source

# Integers beyond this number have no double of their own.
EXACT = 2.0**53
# The fewest rows of a fit.
LEAST = 10
COMMA = re.compile(r"[-+]?\d+,\d+")
# More labels than this, most of them in one row, are names or badly read numbers.
FEW_LABELS = 20


@dataclass(frozen=True)
class Rows:
    """Rows of a table.

    Arguments:
        names: the names of the columns.
        dtypes: their dtypes, by the names of numpy and pandas.
        labels: the labels of a column that is no number; None for a column of numbers.
        values: the numbers, shape ``(n, D)``.
        is_array: True if the columns had no names of their own.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    labels: tuple[tuple[Any, ...] | None, ...]
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
    with scratch.open("wb") as file:
        for part in source.parts():
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
    return Rows(reader.names, reader.dtypes, labels, values, source.is_array)


class _Reader:
    """Reader of parts that have the columns of the first part."""

    def __init__(self, source: Source, first: pd.DataFrame, declared: Mapping[str, object]) -> None:
        self.source, self.count = source, 0
        self.names = names_of(first, source.label)
        self.dtypes = tuple(map(_name_of, first.dtypes))
        self.numbered: list[dict[Any, int] | None] = []
        for name, dtype in zip(self.names, first.dtypes, strict=True):
            given = declared.get(name)
            holds_labels = _holds_labels(dtype, name, source.label)
            if holds_labels and given is not None and not isinstance(given, Category):
                raise ArgumentError(
                    f"Expected numbers in the column {name!r} of {source.label}, declared as "
                    f"{given}; got {dtype}. Declare Category(), or make numbers of the column."
                )
            is_label = isinstance(given, Category) or holds_labels
            known = given.labels if isinstance(given, Category) else None
            self.numbered.append({v: i for i, v in enumerate(known or ())} if is_label else None)
        self.fixed = [bool(numbered) for numbered in self.numbered]
        # Categories have an order of their own.
        self.orders = [
            {_plain(c): i for i, c in enumerate(dtype.categories)}
            if isinstance(dtype, pd.CategoricalDtype)
            else {}
            for dtype in first.dtypes
        ]
        # A later part may hold labels that look like numbers.
        self.is_text = [_is_text(dtype) for dtype in first.dtypes]

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
            _check_labels(column, name, self.source.label)
            if self.is_text[i]:
                column = column.map(_as_text)
            if not self.fixed[i]:
                for label in column.unique():
                    numbered.setdefault(_plain(label), len(numbered))
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
            if len(labels) > FEW_LABELS and len(labels) > 0.5 * self.count:
                raise ArgumentError(
                    f"Expected labels in the column {self.names[i]!r} of {self.source.label} that "
                    f"repeat, or numbers; got {len(labels)} labels in {self.count} rows, such as "
                    f"{labels[0]!r}. Drop a column of names; write numbers with a decimal point."
                )
            commas = [v for v in labels if isinstance(v, str) and COMMA.fullmatch(v.strip())]
            if commas:
                raise ArgumentError(
                    f"Expected numbers with a decimal point in the column {self.names[i]!r} of "
                    f"{self.source.label}; got {commas[0]!r}. Read the table with "
                    "pandas.read_csv(..., decimal=',')."
                )
            keys = [
                (self.orders[i].get(label, len(labels)), str(type(label)), label)
                for label in labels
            ]
            order = sorted(range(len(labels)), key=keys.__getitem__)
            place = np.empty(len(labels))
            place[order] = np.arange(len(labels))
            values[:, i] = place[values[:, i].astype(int)]
            found.append(tuple(labels[j] for j in order))
        return tuple(found)


def fixed(part: pd.DataFrame, columns: Sequence[Any], source: Source, *, names: bool) -> Values:
    """Return the numbers of rows that have the columns of a fit, in the order of the fit.

    Arguments:
        part: the rows.
        columns: the columns, each with a name and labels, or None for numbers.
        source: the source of the rows, for errors.
        names: True to match the columns by name, False by position.
    """
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
            f"Expected {len(wanted)} columns in {source.label}, as in the fit; X has "
            f"{part.shape[1]} features, but DensityEstimator is expecting {len(wanted)} features "
            "as input."
        )
    found = np.empty(part.shape)
    for i, column in enumerate(columns):
        values = part.iloc[:, i]
        check_present(values, column.name, source.label, 0)
        if column.labels is None:
            found[:, i] = numbers(values, column.name, source.label, 0)
        else:
            _check_labels(values, column.name, source.label)
            if all(isinstance(label, str) for label in column.labels):
                values = values.map(_as_text)
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


def check_present(column: pd.Series, name: str, label: str, before: int) -> None:
    """Raise if a cell of a column is missing; ``before`` counts the rows of earlier parts."""
    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise ArgumentError(
            f"Expected a value in every cell of {label}; NaN or nothing in the column {name!r} in "
            f"{len(missing)} rows, counted from 1: {some(missing + before + 1)}. Drop or fill them."
        )


def numbers(column: pd.Series, name: str, label: str, before: int) -> Values:
    """Return a column of numbers as doubles, or raise."""
    if column.dtype == object:
        column = column.infer_objects()
    if _holds_labels(column.dtype, name, label) and not pd.api.types.is_bool_dtype(column.dtype):
        raise ArgumentError(
            f"Expected numbers in the column {name!r} of {label}; got {column.dtype}, such as "
            f"{column.iloc[0]!r}."
        )
    try:
        found = column.to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            f"Expected numbers in the column {name!r} of {label}; got {column.dtype}: {error}."
        ) from error
    infinite = np.flatnonzero(~np.isfinite(found))
    if len(infinite):
        raise ArgumentError(
            f"Expected finite numbers in the column {name!r} of {label}; got infinity in the rows "
            f"{some(infinite + before + 1)}, counted from 1. Drop or replace them."
        )
    if pd.api.types.is_integer_dtype(column.dtype) and bool((np.abs(found) > EXACT).any()):
        raise ArgumentError(
            f"Expected integers up to 2^53 in the column {name!r} of {label}, which a double "
            "holds. Subtract a constant, or drop a column of identifiers."
        )
    return found


def positions(column: pd.Series, numbered: Mapping[Any, int], name: str, label: str) -> Values:
    """Return the positions of labels in their list, or raise for a label that is not there."""
    found = column.map(lambda value: numbered.get(_plain(value), -1)).to_numpy(dtype=np.float64)
    unknown = sorted({str(value) for value in column[found < 0]})
    if unknown:
        raise ArgumentError(
            f"Expected labels among {some(list(numbered))} in the column {name!r} of {label}; got "
            f"{some(unknown)}. Fit again with rows that have them, or drop the rows."
        )
    return found


def some(items: Iterable[object]) -> str:
    """Write up to ten items, and the number of the others."""
    listed = [str(item) for item in items]
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def _check_labels(column: pd.Series, name: str, label: str) -> None:
    """Raise if a label is neither text nor a number nor True or False."""
    for kind in {type(value) for value in column}:
        if not issubclass(kind, str | bool | int | float | np.generic):
            raise ArgumentTypeError(
                f"Expected text, numbers or True and False in the column {name!r} of {label}; got "
                f"{kind.__name__}, and an argument must be a string or a number."
            )


def _name_of(dtype: Any) -> str:
    if isinstance(dtype, pd.CategoricalDtype):
        return "category, ordered" if dtype.ordered else "category"
    return str(dtype)


def _is_text(dtype: Any) -> bool:
    kinds = pd.api.types
    is_text = kinds.is_string_dtype(dtype) or kinds.is_object_dtype(dtype)
    return is_text and not isinstance(dtype, pd.CategoricalDtype) and not kinds.is_bool_dtype(dtype)


def _as_text(value: Any) -> Any:
    """Return a number as the text that a file has for it; True and False as they are."""
    return value if isinstance(value, bool | np.bool_) else str(value)


def _holds_labels(dtype: Any, name: str, label: str) -> bool:
    kinds = pd.api.types
    if kinds.is_bool_dtype(dtype) or isinstance(dtype, pd.CategoricalDtype):
        return True
    if kinds.is_numeric_dtype(dtype) and not kinds.is_complex_dtype(dtype):
        return False
    if kinds.is_string_dtype(dtype) or kinds.is_object_dtype(dtype):
        return True
    raise ArgumentError(
        f"Expected numbers or labels in the column {name!r} of {label}; got {dtype}. Make a number "
        "of it, such as the days since the first date."
    )


def _plain(value: Any) -> Any:
    """Return a label as a plain Python object, so that it can be compared and saved."""
    return value.item() if isinstance(value, np.generic) else value

"""Checks of the cells of a column, and their conversion to numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..errors import ArgumentError, ArgumentTypeError
from .columns import Values

# Integers beyond this number have no double of their own.
EXACT = 2.0**53
# Dtypes of categories, whose order may count.
CATEGORY, ORDERED = "category", "category, ordered"


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
    if holds_labels(column.dtype, name, label) and not pd.api.types.is_bool_dtype(column.dtype):
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
    found = column.map(lambda value: numbered.get(plain(value), -1)).to_numpy(dtype=np.float64)
    unknown = sorted({repr(plain(value)) for value in column[found < 0]})
    if unknown:
        raise ArgumentError(
            f"Expected labels among {some(map(repr, numbered))} in the column {name!r} of {label}; "
            f"got {some(unknown)}. Fit again with rows that have them, or drop the rows."
        )
    return found


def some(items: Iterable[object]) -> str:
    """Write up to ten items, and the number of the others."""
    listed = [str(item) for item in items]
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def check_labels(column: pd.Series, name: str, label: str) -> None:
    """Raise if a label is neither text nor a number nor True or False."""
    for kind in {type(value) for value in column}:
        if not issubclass(kind, str | bool | int | float | np.generic):
            raise ArgumentTypeError(
                f"Expected text, numbers or True and False in the column {name!r} of {label}; got "
                f"{kind.__name__}, and an argument must be a string or a number. Make text of the "
                "column by .astype(str), or numbers, such as the days since the first date."
            )


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype, which for categories says whether their order counts."""
    if isinstance(dtype, pd.CategoricalDtype):
        return ORDERED if dtype.ordered else CATEGORY
    return str(dtype)


def is_text(dtype: Any) -> bool:
    """Return True for a column of text or of mixed objects."""
    kinds = pd.api.types
    is_text = kinds.is_string_dtype(dtype) or kinds.is_object_dtype(dtype)
    return is_text and not isinstance(dtype, pd.CategoricalDtype) and not kinds.is_bool_dtype(dtype)


def are_text(labels: Iterable[Any]) -> bool:
    """Return True if all labels are text, so that cells are compared as text."""
    return all(isinstance(label, str) for label in labels)


def as_text(value: Any) -> Any:
    """Return a number as the text that a file has for it; True and False as they are."""
    return value if isinstance(value, bool | np.bool_) else str(value)


def as_read(labels: list[Any], dtype: str) -> tuple[list[Any], str]:
    """Return the cells of a file as True and False or numbers, where no text is lost; the dtype."""
    if not are_text(labels):
        return labels, dtype
    lower = [label.lower() for label in labels]
    if set(lower) <= {"true", "false"} and len(set(lower)) == len(lower):
        return [label == "true" for label in lower], "bool"
    for kind, name in ((int, "int64"), (float, "float64")):
        try:
            found = [kind(label) for label in labels]
        except ValueError:
            continue
        if all(str(value) == label for value, label in zip(found, labels, strict=True)) and all(
            abs(value) <= EXACT for value in found
        ):
            return found, name
    return labels, dtype


def holds_labels(dtype: Any, name: str, label: str) -> bool:
    """Return True for labels, False for numbers, or raise for another dtype, such as of dates."""
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


def plain(value: Any) -> Any:
    """Return a label as a plain Python object, so that it can be compared and saved."""
    return value.item() if isinstance(value, np.generic) else value

"""Reading of tables: frames, arrays and files, in parts of some thousand rows."""

import os
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError

# Rows read at once.
PART = 100_000
DELIMITERS = (",", ";", "\t", "|")
# Texts for a cell without a value; in a first row they count neither as names nor as numbers.
MISSING = ("", "na", "n/a", "nan", "null", "none", "?", "-")


@dataclass(frozen=True)
class Source:
    """Table that can be read more than once, in parts.

    Arguments:
        label: the name of the table in errors.
        read: yields the rows in order, ``PART`` or fewer at once, given the columns of text.
        is_array: True if the columns have no names of their own.
        is_csv: True if the dtypes are those that pandas infers from the cells of each part.
    """

    label: str
    read: Callable[[Collection[str]], Iterator[pd.DataFrame]]
    is_array: bool = False
    is_csv: bool = False

    def parts(self, text: Collection[str] = ()) -> Iterator[pd.DataFrame]:
        """Yield the rows; a file of text leaves the cells of the columns ``text`` as they are."""
        return self.read(text)


def source_of(table: Any, name: str = "X") -> Source:
    """Return the source of a table, or raise if it is none.

    Arguments:
        table: a pandas DataFrame, a 2-D array, or the path of a ``.csv``, ``.csv.gz``, ``.tsv``,
            ``.parquet`` or ``.npy`` file.
        name: the name of the argument, for errors.
    """
    if isinstance(table, str | os.PathLike):
        return _of_file(Path(table))
    if hasattr(table, "to_pandas"):
        # A table of pyarrow or polars.
        table = table.to_pandas()
    if isinstance(table, pd.Series):
        table = table.to_frame()
    if isinstance(table, pd.DataFrame):
        frame = _with_dtypes(table)
        return Source(name, lambda text: _in_parts(frame))
    if isinstance(table, np.ma.MaskedArray):
        table = np.ma.filled(table.astype(float), np.nan)
    if isinstance(table, Tensor):
        # NumPy has no bfloat16.
        table = table.float() if table.dtype == torch.bfloat16 else table
        table = table.detach().cpu().numpy()
    if hasattr(table, "toarray"):
        raise ArgumentTypeError(
            f"Expected {name} to be a dense table; got the sparse {type(table).__name__}. Pass "
            f"{name}.toarray()."
        )
    try:
        array = np.asarray(table)
    except (ValueError, TypeError) as error:
        raise ArgumentTypeError(f"Expected {name} to be a table; {error}.") from error
    return _of_array(array, name)


def _of_array(array: np.ndarray, label: str) -> Source:
    if array.ndim != 2 and array.dtype.names is None:
        # A dictionary of columns, or a list of dictionaries.
        is_plain = not any(isinstance(value, dict) for value in array.flat[:1])
        hint = f" Reshape {label} to (n, 1) or (1, D)." if array.ndim == 1 else ""
        hint = hint if is_plain else f" Pass pandas.DataFrame({label})."
        raise ArgumentError(
            f"Expected {label} to be a table of shape (n, D); got shape {array.shape}.{hint}"
        )
    if array.dtype.names is not None:
        raise ArgumentError(
            f"Expected {label} to be a table of numbers; got a structured array. Pass "
            f"pandas.DataFrame({label})."
        )
    if array.dtype.kind == "c":
        raise ArgumentError(
            f"Expected {label} to hold real numbers; Complex data not supported. Pass real and "
            "imaginary parts as two columns."
        )
    names = [f"x{i}" for i in range(array.shape[1])]
    if array.dtype.kind == "O":
        # An array of mixed objects has numbers in some columns.
        frame = pd.DataFrame(array, columns=names).infer_objects()
        return Source(label, lambda text: _in_parts(frame), is_array=True)
    # A frame copies, and a file may be larger than the memory.
    return Source(label, lambda text: _in_frames(array, names), is_array=True)


def _with_dtypes(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose columns of objects have a dtype of numbers where all are numbers."""
    if not any(map(pd.api.types.is_object_dtype, frame.dtypes)):
        return frame
    frame = frame.infer_objects()
    for i, dtype in enumerate(frame.dtypes):
        column = frame.iloc[:, i]
        if pd.api.types.is_object_dtype(dtype) and all(isinstance(v, Decimal) for v in column):
            frame.isetitem(i, column.astype(float))
    return frame


def _in_parts(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for start in range(0, max(1, len(frame)), PART):
        yield frame.iloc[start : start + PART]


def _in_frames(array: np.ndarray, names: list[str]) -> Iterator[pd.DataFrame]:
    for start in range(0, max(1, len(array)), PART):
        yield pd.DataFrame(array[start : start + PART], columns=names)


def _of_file(path: Path) -> Source:
    if not path.is_file():
        raise ArgumentError(f"Expected a file to read; there is none at {path}.")
    ending = path.suffix.lower()
    match "".join(path.suffixes[-2:]).lower() if ending == ".gz" else ending:
        case ".csv" | ".tsv" | ".csv.gz" | ".tsv.gz":
            return Source(str(path), partial(_csv_parts, path), is_csv=True)
        case ".parquet":
            return Source(str(path), lambda text: _parquet_parts(path))
        case ".npy":
            return _of_array(_array_in(path), str(path))
        case _:
            raise ArgumentError(
                f"Expected a .csv, .csv.gz, .tsv, .parquet or .npy file; got {path}."
            )


def _array_in(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ArgumentError(
            f"Expected an array of numbers in {path}, as numpy.save writes it; could not read one."
        ) from error
    if not isinstance(array, np.ndarray):
        raise ArgumentError(f"Expected one array in {path}; got a zip of arrays.")
    return array


def _parquet_parts(path: Path) -> Iterator[pd.DataFrame]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PART):
                yield _with_dtypes(batch.to_pandas())
    except (pyarrow.ArrowException, OSError) as error:
        raise ArgumentError(f"Expected a parquet table in {path}; {error}.") from error


def _csv_parts(path: Path, text: Collection[str]) -> Iterator[pd.DataFrame]:
    try:
        with warnings.catch_warnings():
            # Pandas warns if a row is longer than the header, when cells would be lost.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            cells, delimiter = _first_row(path)
            header = is_header(cells, path)
            # Without a header pandas knows a column by its number.
            columns = [cell if header else f"x{i}" for i, cell in enumerate(cells)]
            kept: Any = {i: str for i, name in enumerate(columns) if name in text}
            with pd.read_csv(
                path,
                sep=delimiter,
                header=0 if header else None,
                index_col=False,
                skipinitialspace=True,
                dtype=kept,
                chunksize=PART,
            ) as parts:
                for part in parts:
                    yield part if header else part.rename(columns="x{}".format)
    except ArgumentError:
        raise
    except (ValueError, OSError, EOFError, zlib.error, pd.errors.ParserWarning) as error:
        raise ArgumentError(f"Expected a table in {path}; {error}.") from error


def _first_row(path: Path) -> tuple[list[str], str]:
    """Return the cells of the first row, and the delimiter that makes the most of them.

    A delimiter by which the second row has as many cells comes first.
    """
    found = []
    for delimiter in DELIMITERS:
        cells = _rows(path, delimiter, 1).iloc[0].tolist()
        try:
            second = _rows(path, delimiter, 2).iloc[-1]
            agrees = len(cells) > 1 and bool(second.fillna("").ne("").all())
        except pd.errors.ParserError:
            agrees = False
        found.append((agrees, len(cells), cells, delimiter))
    *_, cells, delimiter = max(found, key=lambda each: each[:2])
    # Pandas would give copies other names.
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice and all(map(_is_text, cells)):
        raise ArgumentError(
            f"Expected a name of its own for every column of {path}; given twice: "
            f"{', '.join(twice)}."
        )
    return cells, delimiter


def _rows(path: Path, delimiter: str, count: int) -> pd.DataFrame:
    """Read the first rows of a file as text."""
    return pd.read_csv(
        path,
        sep=delimiter,
        header=None,
        nrows=count,
        dtype=str,
        keep_default_na=False,
        skipinitialspace=True,
    )


def is_header(cells: list[str], path: Path) -> bool:
    """Return True if the first row names the columns: all text, or the numbers 0, 1, 2, ..."""
    if len(cells) > 1 and [cell.strip() for cell in cells] == [str(i) for i in range(len(cells))]:
        return True
    said = [cell for cell in cells if cell.strip().lower() not in MISSING]
    text = [_is_text(cell) for cell in said]
    if any(text) and not all(text):
        odd = said[text.index(True)]
        raise ArgumentError(
            f"Expected the first row of {path} to be all names or all numbers; got both, "
            f"{odd.strip()!r} among them. Add a header row, or mend the cell; or read the file "
            "with pandas.read_csv, and pass the DataFrame."
        )
    return bool(text) and all(text)


def _is_text(cell: str) -> bool:
    if cell.strip().lower() in ("true", "false"):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False

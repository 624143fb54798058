"""The data of the demo, and the tables that users bring."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ..errors import ArgumentError
from ..tables.cells import some
from ..tables.reading import is_header

LEVELS = 17
HELD_OUT_DIGITS = 297


@dataclass(frozen=True)
class Table:
    """Rows to model, split in two, and their maps to and from model space, where the flows work.

    Arguments:
        name, names: the names in the report, of the table and of its columns.
        train, test: the rows, shape ``(n, D)``, in the data's own units.
        encode: maps rows to model space; draws fresh noise if the data are discrete.
        log_slope: the sum over columns of ``log |d encode / d row|``, shape ``(n,)``, from encoded
            rows; turns a density in model space into a density of the data.
        decode: maps model space to rows.
        image_shape: the shape of one row, if it is a picture.
    """

    name: str
    train: Tensor
    test: Tensor
    names: tuple[str, ...]
    encode: Callable[[Tensor], Tensor]
    log_slope: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    image_shape: tuple[int, int] | None = None

    @property
    def features(self) -> int:
        return self.train.shape[1]


def digits() -> Table:
    """The 1,797 handwritten 8x8 digits of scikit-learn, with 17 grey levels; 1,500 are to train.

    Model space is ``0.5 logit(0.05 + 0.9 (x + u) / 17)`` with ``u`` uniform in [0, 1).
    """
    rows = torch.as_tensor(load_digits(return_X_y=True)[0], dtype=torch.get_default_dtype())
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]

    def encode(x: Tensor) -> Tensor:
        return 0.5 * torch.logit(0.05 + 0.9 * (x + torch.rand_like(x)) / LEVELS)

    def log_slope(z: Tensor) -> Tensor:
        p = torch.sigmoid(2 * z)
        return torch.log(0.5 * 0.9 / LEVELS / (p * (1 - p))).sum(-1)

    def decode(z: Tensor) -> Tensor:
        grey = (torch.sigmoid(2 * z) - 0.05) / 0.9 * LEVELS
        return grey.floor().clamp(0, LEVELS - 1)

    return Table(
        name="digits",
        train=rows[:-HELD_OUT_DIGITS],
        test=rows[-HELD_OUT_DIGITS:],
        names=tuple(f"pixel {i}" for i in range(rows.shape[1])),
        encode=encode,
        log_slope=log_slope,
        decode=decode,
        image_shape=(8, 8),
    )


def load_table(path: Path) -> Table:
    """Read a table of numbers, a ``.csv`` (header row or not) or ``.npy`` file, a sixth held out.

    Model space holds the standardised rows. The split follows torch's seed. Raises
    :class:`ArgumentError`: no such file, another ending, text or missing numbers (with their rows),
    constant columns (by name), too few rows.
    """
    frame = read_table(path)
    rows = torch.tensor(frame.to_numpy(dtype=np.float64))
    rows = rows[torch.randperm(len(rows))]
    held_out = len(rows) // 6
    train, test = rows[:-held_out], rows[-held_out:]
    mean, std = train.mean(0), train.std(0)
    names = tuple(str(c) for c in frame.columns)
    # A column that is constant up to rounding has no density in these units.
    resolution = 8 * torch.finfo(rows.dtype).eps * train.abs().amax(0)
    constant = [names[i] for i in torch.nonzero(std <= resolution).flatten().tolist()]
    if constant:
        raise ArgumentError(
            f"Expected columns of {path} that vary; these are constant over the training rows: "
            f"{some(constant)}. Drop them."
        )
    # Double precision up to here, so that time stamps keep their seconds.
    dtype = torch.get_default_dtype()
    if not bool(std.isfinite().all() and ((rows - mean) / std).to(dtype).isfinite().all()):
        raise ArgumentError(
            f"Expected numbers in {path} whose squares a double holds; some exceed that. "
            "Change their unit."
        )
    return Table(
        name=path.stem,
        train=train,
        test=test,
        names=names,
        encode=lambda x: ((x - mean) / std).to(dtype),
        log_slope=lambda z: -std.log().sum().to(z.dtype).expand(len(z)),
        decode=lambda z: z.double() * std + mean,
    )


def read_table(path: Path) -> pd.DataFrame:
    """Read the columns of a file; raises, and names the fault, unless every cell is a number."""
    frame = _read(path)
    if len(frame) < 12 or frame.shape[1] < 1:
        raise ArgumentError(
            f"Expected at least 12 rows and a column in {path}; got {frame.shape[0]} rows and "
            f"{frame.shape[1]} columns."
        )
    unnamed = [str(c) for c in frame.columns if str(c).startswith("Unnamed:")]
    if unnamed:
        raise ArgumentError(
            f"Expected a name for every column of {path}; {len(unnamed)} have none, as the index "
            "that pandas writes. Name or drop them (to_csv(index=False))."
        )
    text = [str(c) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    if text:
        raise ArgumentError(
            f"Expected numbers in every column of {path}; these hold text: {some(text)}. "
            "Drop or encode them."
        )
    bad = np.flatnonzero(~np.isfinite(frame.to_numpy(dtype=np.float64)).all(axis=1))
    if len(bad):
        raise ArgumentError(
            f"Expected a number in every cell of {path}; NaN or infinity in {len(bad)} of "
            f"{len(frame)} rows, counted from 1 without the header: {some(bad + 1)}. "
            "Drop or fill them."
        )
    return frame


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ArgumentError(f"Expected a file to read; there is none at {path}.")
    match path.suffix.lower():
        case ".npy":
            return _read_array(path)
        case ".csv":
            return _read_csv(path)
        case _:
            raise ArgumentError(f"Expected a .csv or .npy file; got {path}.")


def _read_array(path: Path) -> pd.DataFrame:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ArgumentError(
            f"Expected an array of numbers in {path}, as numpy.save writes it; could not read one."
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiub":
        seen = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "a zip"
        raise ArgumentError(f"Expected a 2-D array of numbers in {path}; got {seen}.")
    return pd.DataFrame(array.astype(np.float64)).rename(columns="column {}".format)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # Pandas warns if a row is longer than the header, when cells would be lost.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            first = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
            header = is_header(first.iloc[0].tolist(), path)
            frame = pd.read_csv(
                path, header=0 if header else None, index_col=False, skipinitialspace=True
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"Expected a table of numbers in {path}; {error}.") from error
    return frame if header else frame.rename(columns="column {}".format)


def checkerboard(n: int) -> Tensor:
    """Draw ``n`` points of the checkerboard, ``(n, 2)``: eight squares of side 2, entropy ln 32."""
    a = 4 * torch.rand(n) - 2
    b = torch.rand(n) - 2 * torch.randint(0, 2, (n,)) + a.floor() % 2
    return 2 * torch.stack([a, b], dim=1)

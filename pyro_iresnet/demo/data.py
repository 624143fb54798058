"""The data of the demo, and the tables that users bring."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ..errors import ArgumentError

LEVELS = 17
HELD_OUT_DIGITS = 297


@dataclass(frozen=True)
class Table:
    """Rows to model, split in two, and how they reach the space where the flows work.

    Arguments:
        name: for the report.
        train, test: the rows, shape ``(n, D)``, in the data's own units.
        names: of the columns.
        encode: rows to model space, drawing noise afresh where the data are discrete.
        log_slope: the sum over columns of ``log |d encode / d row|``, shape ``(n,)``, from encoded
            rows; in bits per dimension it turns a density of model space into one of the data.
        decode: model space to rows.
        image_shape: of one row, if it is a picture.
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
    """The 1,797 handwritten 8x8 digits of scikit-learn, with 17 grey levels: 1,500 to train.

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
    """A table of numbers from a ``.csv`` (header row or not) or ``.npy`` file, a sixth held out.

    Model space is the standardised one. The split follows torch's seed.

    Raises:
        ArgumentError: no such file, another ending, text or missing numbers (with their rows),
            constant columns (by name), too few rows.
    """
    frame = _read(path)
    text = [str(c) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    if text:
        raise ArgumentError(
            f"Expected numbers in every column of {path}; these hold text: {_some(text)}. "
            "Drop or encode them."
        )
    values = frame.to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise ArgumentError(
            f"Expected a number in every cell of {path}; NaN or infinity in {len(bad)} of "
            f"{len(values)} rows, counted from 1 without the header: {_some(bad + 1)}. "
            "Drop or fill them."
        )
    if len(values) < 12 or values.shape[1] < 1:
        raise ArgumentError(
            f"Expected at least 12 rows and a column in {path}; got {values.shape[0]} rows and "
            f"{values.shape[1]} columns."
        )
    rows = torch.tensor(values, dtype=torch.get_default_dtype())
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
            f"{_some(constant)}. Drop them."
        )
    return Table(
        name=path.stem,
        train=train,
        test=test,
        names=names,
        encode=lambda x: (x - mean) / std,
        log_slope=lambda z: -std.log().sum().expand(len(z)),
        decode=lambda z: z * std + mean,
    )


def checkerboard(n: int) -> Tensor:
    """``n`` points of the checkerboard, ``(n, 2)``: eight squares of side 2, entropy ln 32."""
    a = 4 * torch.rand(n) - 2
    b = torch.rand(n) - 2 * torch.randint(0, 2, (n,)) + a.floor() % 2
    return 2 * torch.stack([a, b], dim=1)


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ArgumentError(f"Expected a file to read; there is none at {path}.")
    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)
        if array.ndim != 2 or array.dtype.kind not in "fiub":
            raise ArgumentError(
                f"Expected a 2-D array of numbers in {path}; got {array.dtype} of shape "
                f"{array.shape}."
            )
        return pd.DataFrame(array.astype(np.float64)).rename(columns="column {}".format)
    if path.suffix == ".csv":
        try:
            first = pd.read_csv(path, header=None, nrows=1).iloc[0]
            header = 0 if any(_is_text(cell) for cell in first) else None
            frame = pd.read_csv(path, header=header, skipinitialspace=True)
        except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise ArgumentError(f"Expected a table of numbers in {path}; {error}.") from error
        return frame if header == 0 else frame.rename(columns="column {}".format)
    raise ArgumentError(f"Expected a .csv or .npy file; got {path}.")


def _is_text(cell: object) -> bool:
    """Whether a cell of the first row names a column: text that is no number, nor "nan"."""
    try:
        float(str(cell))
    except ValueError:
        return True
    return False


def _some(items: object) -> str:
    listed = [str(item) for item in items]  # pyright: ignore[reportGeneralTypeIssues]
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")

"""File of a fitted estimator: a header line with a checksum, then tensors and plain types."""

import hashlib
import io
import json
import pickle
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ArgumentError
from ..options import BlockOptions
from .columns import Category, Column, HeavyTailed, Integer, Real
from .context import ContextColumn
from .encoding import FittedColumn

MAGIC = b"pyro-iresnet table model "
# The number of the format, which grows with every change that older versions cannot read.
FORMAT = 1
KINDS: dict[str, type[Column]] = {k.__name__: k for k in (Category, HeavyTailed, Integer, Real)}


def write(path: Path, content: dict[str, Any], version: str) -> None:
    """Write a file in one move: a crash leaves the file of before, or none."""
    if path.is_dir() or not path.parent.is_dir():
        raise ArgumentError(f"Expected a file in a folder that is there; got {path}.")
    body = io.BytesIO()
    torch.save(content, body)
    payload = body.getvalue()
    header = {"format": FORMAT, "version": version, "sha256": _digest(FORMAT, version, payload)}
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with new.open("xb") as file:
            # A private file stays private.
            if path.exists():
                shutil.copymode(path, new)
            file.write(MAGIC + json.dumps(header).encode() + b"\n" + payload)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def load(path: Path) -> dict[str, Any]:
    """Read a file of :func:`write`, or raise for another, a newer, a cut or a changed one."""
    if not path.is_file():
        raise ArgumentError(f"Expected a file to load; there is none at {path}.")
    with path.open("rb") as file:
        first, payload = file.readline(), file.read()
    try:
        if not first.startswith(MAGIC):
            raise ValueError
        header = json.loads(first.removeprefix(MAGIC))
        number, version, digest = header["format"], header["version"], header["sha256"]
        if not isinstance(number, int):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"Expected a file of DensityEstimator.save; {path} is another kind of file."
        ) from error
    if number > FORMAT:
        raise ArgumentError(
            f"Expected a file of format {FORMAT} or older; {path} has format {number}, of version "
            f"{version}. Install that version."
        )
    if _digest(number, version, payload) != digest:
        raise ArgumentError(
            f"Expected {path} as it was saved; its checksum differs, so it was cut or changed. "
            "Copy it again."
        )
    try:
        return torch.load(io.BytesIO(payload), weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ArgumentError(
            f"Expected tensors and plain types in {path}; other objects are not loaded."
        ) from error


def _digest(number: int, version: str, payload: bytes) -> str:
    return hashlib.sha256(f"{number} {version}\n".encode() + payload).hexdigest()


def to_plain(kind: Column) -> dict[str, Any]:
    """Return a kind of column as plain types."""
    settings = {f.name: getattr(kind, f.name) for f in fields(kind)}  # pyright: ignore[reportArgumentType]
    return {"kind": type(kind).__name__, **settings}


def from_plain(content: dict[str, Any]) -> Column:
    """Make the kind of :func:`to_plain`."""
    settings = dict(content)
    return KINDS[settings.pop("kind")](**settings)


def settings_to_plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an estimator as plain types, but for those of the trainer."""
    # A search over parameters sets scalars of NumPy.
    found = {n: v.item() if isinstance(v, np.generic) else v for n, v in settings.items()}
    kinds, options, widths = (settings[n] for n in ("columns", "options", "hidden_features"))
    found["columns"] = {str(name): to_plain(kind) for name, kind in (kinds or {}).items()}
    found["options"] = None if options is None else options.to_json()
    if isinstance(widths, Sequence):
        found["hidden_features"] = list(map(int, widths))
    return found | {"trainer": None}


def settings_from_plain(content: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of :func:`settings_to_plain`."""
    kinds = {name: from_plain(kind) for name, kind in content["columns"].items()}
    options = content["options"]
    given = None if options is None else BlockOptions.from_json(options)
    return content | {"columns": kinds or None, "options": given}


def columns_to_plain(columns: tuple[FittedColumn, ...]) -> list[dict[str, Any]]:
    """Return fitted columns as plain types."""
    return [vars(column) | {"kind": to_plain(column.kind)} for column in columns]


def columns_from_plain(content: list[dict[str, Any]]) -> tuple[FittedColumn, ...]:
    """Make the columns of :func:`columns_to_plain`."""
    return tuple(FittedColumn(kind=from_plain(c.pop("kind")), **c) for c in map(dict, content))


def context_to_plain(columns: tuple[ContextColumn, ...] | None) -> list[dict[str, Any]] | None:
    """Return the columns of a context as plain types."""
    return None if columns is None else [asdict(column) for column in columns]


def context_from_plain(content: list[dict[str, Any]] | None) -> tuple[ContextColumn, ...] | None:
    """Make the columns of :func:`context_to_plain`."""
    return None if content is None else tuple(ContextColumn(**c) for c in content)

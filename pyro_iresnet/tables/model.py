"""A flow with the encoding of its table: scores, draws, and plain types to save."""

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from nflows.flows import Flow
from torch import Tensor

from ..errors import ArgumentError, IResNetError
from ..hosts.nflows import conditional_iresnet_flow, iresnet_flow
from ..options import BlockOptions
from . import files
from .columns import Values
from .context import ContextColumn, encoded_context
from .encoding import TableEncoding
from .reading import source_of
from .rows import fixed

# Rows in one evaluation.
CHUNK = 10_000
# Points at which the density of integers is averaged over their intervals.
POINTS = 32


class TableModel:
    """Density of the rows of a table.

    Arguments:
        encoding: the map between rows of numbers and rows of the flow.
        context: the columns of the context; None for no context.
        is_array: True if the columns have no names of their own.
        num_blocks, hidden_features, options: of the flow.
        has_actnorms: True for an ActNorm before each block and at the end.
    """

    def __init__(
        self,
        encoding: TableEncoding,
        context: tuple[ContextColumn, ...] | None,
        num_blocks: int,
        hidden_features: int | Sequence[int] | None,
        options: BlockOptions,
        *,
        is_array: bool,
        has_actnorms: bool,
    ) -> None:
        self.encoding, self.context, self.is_array = encoding, context, is_array
        self.num_blocks, self.hidden_features = num_blocks, hidden_features
        self.options, self.has_actnorms = options, has_actnorms
        dim = len(encoding.columns)
        make: dict[str, Any] = {"hidden_features": hidden_features, "options": options}
        if not has_actnorms:
            make["between"] = None
        if context is None:
            self.flow: Flow = iresnet_flow(dim, num_blocks, **make)
        else:
            size = sum(column.size for column in context)
            self.flow = conditional_iresnet_flow(dim, size, num_blocks, **make)

    def rows(self, table: Any) -> Values:
        """Read rows that have the columns of the fit."""
        source = source_of(table)
        found = fixed(source, self.encoding.columns, names=not self.is_array)
        if not len(found):
            raise ArgumentError(f"Expected rows in {source.label}; got 0 sample(s).")
        for i, column in enumerate(self.encoding.columns):
            broken = np.flatnonzero(found[:, i] != np.floor(found[:, i]))
            if column.kind.is_integer and len(broken):
                warnings.warn(
                    f"The column {column.name!r} had integers alone in the fit, so a row with "
                    f"another number has density 0; {len(broken)} rows of {source.label} have one, "
                    f"such as {found[broken[0], i]:g}. For fractions fit with "
                    f"columns={{{column.name!r}: Real()}}.",
                    stacklevel=3,
                )
        return found

    def encoded_context(self, context: Any, count: int | None = None) -> Values | None:
        """Read and encode a context of ``count`` rows, or raise if there should be none."""
        if (context is None) != (self.context is None):
            has, got = ("a", "none") if context is None else ("no", "one")
            raise ArgumentError(
                f"Expected {has} context, as in fit; got {got}. Pass context= to fit and to every "
                "call after, or to none."
            )
        if self.context is None:
            return None
        found = fixed(source_of(context, "context"), self.context, names=True)
        values = encoded_context(self.context, found)
        if count is not None:
            check_as_many(count, len(values))
        return values

    def scores(self, rows: Values, context: Values | None, points: int = POINTS) -> Values:
        """Return the log-density of each row of numbers, given the encoded context."""
        found = np.full(len(rows), -np.inf)
        inside = np.flatnonzero(self.encoding.allowed(rows))
        cube = self.encoding.points(points)
        size = max(1, CHUNK // len(cube))
        for start in range(0, len(inside), size):
            where = inside[start : start + size]
            part = None if context is None else context[where]
            found[where] = self._log_prob(torch.from_numpy(rows[where]), part, cube).numpy()
        unknown = np.isnan(found)
        if unknown.any() and not all(p.isfinite().all() for p in self.flow.parameters()):
            raise IResNetError(
                "Expected finite parameters of the flow; some are NaN or infinite, so the "
                "densities are unknown. Fit the estimator again, or load its file."
            )
        # A row so far out that the flow overflows has density 0.
        return np.where(unknown, -np.inf, found)

    @torch.no_grad()
    def draw(self, count: int, context: Values | None) -> pd.DataFrame:
        """Draw ``count`` rows, for each row of the encoded context."""
        if context is None:
            sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
            drawn = [self.flow.sample(size) for size in sizes]
        else:
            parts = torch.from_numpy(context).split(max(1, CHUNK // count))
            drawn = [self.flow.sample(count, part).flatten(0, 1) for part in parts]
        return self.encoding.frame(self.encoding.decode(torch.cat(drawn)))

    def to_plain(self) -> dict[str, Any]:
        """Return the model as tensors and plain types."""
        return {
            "num_blocks": self.num_blocks,
            "hidden_features": self.hidden_features,
            "options": self.options.to_json(),
            "columns": files.columns_to_plain(self.encoding.columns),
            "covariance": self.encoding.covariance,
            "context": files.context_to_plain(self.context),
            "is_array": self.is_array,
            "has_actnorms": self.has_actnorms,
            "state_dict": self.flow.state_dict(),
        }

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> Self:
        """Make the model of :meth:`to_plain`."""
        columns = files.columns_from_plain(content["columns"])
        model = cls(
            TableEncoding(columns, content["covariance"]),
            files.context_from_plain(content["context"]),
            content["num_blocks"],
            content["hidden_features"],
            BlockOptions.from_json(content["options"]),
            is_array=content["is_array"],
            has_actnorms=content["has_actnorms"],
        )
        model.flow.double().load_state_dict(content["state_dict"])
        model.flow.eval()
        return model

    @torch.no_grad()
    def _log_prob(self, rows: Tensor, context: Values | None, points: Tensor) -> Tensor:
        noisy = rows.repeat_interleave(len(points), 0)
        z, slope = self.encoding.encode(noisy, points.repeat(len(rows), 1))
        given = None
        if context is not None:
            given = torch.from_numpy(context).repeat_interleave(len(points), 0)
        log_prob = (self.flow.log_prob(z, given) + slope).reshape(len(rows), len(points))
        return log_prob.logsumexp(1) - np.log(len(points))


def check_as_many(rows: int, context: int) -> None:
    """Raise unless there is a row of context for each row of the table."""
    if rows != context:
        raise ArgumentError(
            f"Expected a row of context for each row of X; got {context} and {rows}."
        )


def check_order(table: Any, context: Any) -> None:
    """Raise if a label of one index stands at another row of the other index."""
    kinds = pd.DataFrame | pd.Series
    if not (isinstance(table, kinds) and isinstance(context, kinds)) or len(table) != len(context):
        return
    if table.index.equals(context.index):
        return
    ranges = [isinstance(each.index, pd.RangeIndex) for each in (table, context)]
    if ranges[0] != ranges[1] and len(table.index.difference(context.index)):
        # A new index, such as that of a scaler's result, counts the rows of a part of a table.
        return
    labels, _ = table.index.append(context.index).factorize()
    ours, theirs = np.split(labels, 2)
    differ = ours != theirs
    if np.isin(ours[differ], theirs[differ]).any():
        raise ArgumentError(
            "Expected the rows of context in the order of X, row by row; their indices have the "
            "same labels at other rows. Pass context.loc[X.index]; or reset both indices, if the "
            "rows agree."
        )

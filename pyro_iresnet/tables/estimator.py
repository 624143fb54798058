"""Density estimator of a table, by the conventions of scikit-learn."""

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted

import pyro_iresnet

from ..errors import (
    ArgumentError,
    check_flag,
    check_instance,
    check_positive,
    check_positive_int,
    check_probability,
)
from ..hosts.nflows.transform import widths
from ..options import BlockOptions
from . import files
from .columns import Column, Values, check_columns
from .context import encoded_context, fitted_context
from .data import RandomBatches
from .encoding import TableEncoding
from .fit import History, check_trainer, checks_of, is_small, options_for, train
from .model import POINTS, TableModel, check_as_many, check_order
from .reading import source_of
from .recognition import fitted_columns, sample_of
from .rows import Rows, read

# Held-out rows whose scores set a threshold.
SCORED = 2000


class DensityEstimator(DensityMixin, BaseEstimator):
    r"""Density of a table by an i-ResNet flow, in the units of the table.

    Each column is encoded by an invertible function onto the real line, and its slope is counted:

    .. math:: \log p(x) = \log p_{\text{flow}}(z(x)) + \sum_i \log |dz_i / dx_i|

    so densities are in the user's units, and samples have the type, the range and the order of the
    columns. Kinds of columns are recognised, or declared by ``columns``: :class:`Real` between
    limits, :class:`HeavyTailed`, :class:`Integer`, :class:`Category`. For integers and labels the
    density is a probability.

    ``fit`` holds a share of the rows out, stops when their score stops to rise, and keeps the best
    average of the weights. Ctrl-C keeps the best so far.

    Arguments:
        columns: kinds by the name of the column; columns that are not named are recognised. The
            columns of an array are named x0, x1, ... A column of numbers in a context may be a
            :class:`Category` too.
        num_blocks: the number of residual blocks; change this first.
        hidden_features: the width of the hidden layers, or a sequence of widths.
        options: the options of a block; by default those of :func:`iresnet_flow`, with more damping
            if there are fewer than 100 rows for each column. So few rows also have no ActNorms,
            whatever the options.
        max_steps: the most steps of training.
        batch_size: the rows of a step.
        learning_rate: the learning rate of Adam.
        validation_fraction: the share of rows held out to stop.
        patience: training stops after more steps without a better score than ``patience`` times
            the steps before, and 200.
        trainer: options of ``lightning.Trainer``, such as ``{"accelerator": "gpu", "devices": 1}``.
        progress: True for a progress bar.

    Attributes:
        flow_: the trained nflows ``Flow``, in double precision.
        columns_: the kind of each column by name, declared or recognised.
        encoding_: the map between rows of numbers and rows of the flow.
        model_: the two together.
        history_: the steps, and the losses of training and validation in nats of the user's units.
        n_features_in_, feature_names_in_: the number and the names of the columns.

    Raises:
        ArgumentError, ArgumentTypeError: in ``fit``, an argument out of range or of the wrong type.

    References:
        Invertible Residual Networks (Behrmann et al., 2019), for the flow; A Note on the Evaluation
        of Generative Models (Theis, van den Oord and Bethge, 2016), for integers.

    Example:
        >>> import pandas as pd, torch
        >>> from pyro_iresnet.tables import DensityEstimator
        >>> _ = torch.manual_seed(0)
        >>> table = pd.DataFrame({"height": 1.7 + 0.1 * torch.randn(200), "visits": range(200)})
        >>> estimator = DensityEstimator(max_steps=20, num_blocks=2, progress=False).fit(table)
        >>> estimator.score_samples(table).shape
        (200,)
        >>> estimator.sample(3).dtypes.tolist()
        [dtype('float32'), dtype('int64')]
    """

    def __init__(
        self,
        columns: Mapping[str, Column] | None = None,
        *,
        num_blocks: int = 8,
        hidden_features: int | Sequence[int] | None = None,
        options: BlockOptions | None = None,
        max_steps: int = 5000,
        batch_size: int = 256,
        learning_rate: float = 5e-3,
        validation_fraction: float = 0.1,
        patience: float = 1.0,
        trainer: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        self.columns = columns
        self.num_blocks = num_blocks
        self.hidden_features = hidden_features
        self.options = options
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.trainer = trainer
        self.progress = progress

    def fit(self, X: Any, y: Any = None, *, context: Any = None) -> Self:
        """Fit the flow to a table.

        Arguments:
            X: a DataFrame, an array of shape ``(n, D)``, or the path of a ``.csv``, ``.csv.gz``,
                ``.tsv``, ``.parquet`` or ``.npy`` file, read in parts to need little memory.
            y: ignored, as scikit-learn expects it; a context has to be named.
            context: a table of as many rows, for the density of ``X`` given the context.

        Raises:
            ArgumentError: a missing or infinite value, a constant column of real numbers, a column
                that depends on others, values outside the limits of a declared kind, too few rows.
            NonFiniteLossError: the loss became NaN or infinite.
        """
        self._check_parameters()
        if np.ndim(y) > 1:
            warnings.warn(
                f"The fit ignores y; got one of shape {np.shape(y)}. For the density given other "
                "columns name them: fit(X, context=...).",
                stacklevel=2,
            )
        check_order(X, context)
        with torch.inference_mode(False), tempfile.TemporaryDirectory() as folder:
            kinds = {str(name): kind for name, kind in (self.columns or {}).items()}
            rows = read(source_of(X), kinds, Path(folder) / "rows")
            given = None
            if context is not None:
                given = read(source_of(context, "context"), kinds, Path(folder) / "context")
                check_as_many(len(rows.values), len(given.values))
                kinds = {n: k for n, k in kinds.items() if n in rows.names or n not in given.names}
            self._fit(rows, given, kinds, Path(folder))
        return self

    def score_samples(self, X: Any, context: Any = None, *, points: int = POINTS) -> Values:
        """Return the log-density of each row, nats in the units of the table, shape ``(n,)``.

        A row outside the limits of a column has minus infinity. The probability of integers
        averages the density over fixed points of their intervals. Few points make the scores too
        low where many columns of integers depend on each other: raise ``points`` until the scores
        stand still.

        Arguments:
            X: rows with the columns of the fit.
            context: a row for each row of ``X``, if the fit had a context.
            points: the number of points.
        """
        check_is_fitted(self)
        count = check_positive_int(points, "points")
        rows = self.model_.rows(X)
        check_order(X, context)
        return self.model_.scores(rows, self.model_.encoded_context(context, len(rows)), count)

    def score(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, X: Any, y: Any = None, context: Any = None
    ) -> float:
        """Return the mean of :meth:`score_samples`."""
        return float(self.score_samples(X, context).mean())

    def threshold(self, share: float) -> float:
        """Return the log-density below which a share of the held-out rows of the fit lies.

        ``score_samples(X) < threshold(0.01)`` marks anomalies, of which an ordinary row is one in a
        hundred.
        """
        check_is_fitted(self)
        return float(np.quantile(self.held_out_scores_, check_probability(share, "share")))

    def sample(self, n_samples: int = 1, context: Any = None) -> Any:
        """Draw rows, by torch's seed: a DataFrame, or an array if the estimator was fitted to one.

        With a context of m rows there are ``n_samples`` rows for each, one after the other.
        """
        check_is_fitted(self)
        count = check_positive_int(n_samples, "n_samples")
        frame = self.model_.draw(count, self.model_.encoded_context(context))
        return frame.to_numpy() if self.model_.is_array else frame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a file, which :meth:`load` reads.

        The file holds tensors and plain types, no code, under a checksum. It replaces an older one
        in a single move. The options of ``lightning.Trainer`` are left out.

        Raises:
            ArgumentError: a folder that is not there, or an option that JSON cannot name, such as a
                lambda.
        """
        check_is_fitted(self)
        content = {
            "settings": files.settings_to_plain(self.get_params(deep=False)),
            "model": self.model_.to_plain(),
            "history": self.history_.to_plain(),
            "held_out_scores": torch.from_numpy(self.held_out_scores_),
        }
        files.write(Path(path), content, pyro_iresnet.__version__)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a fitted estimator from a file of :meth:`save`.

        Raises:
            ArgumentError: no such file, another kind of file, one of another version's fields, or
                one that was cut or changed.
        """
        content = files.load(Path(path))
        try:
            # The weights of a new flow are drawn, then replaced.
            with torch.random.fork_rng(devices=[]):
                return cls._of(content)
        except (KeyError, TypeError) as error:
            raise ArgumentError(
                f"Expected a model of version {pyro_iresnet.__version__} in {path}; its fields are "
                "others. Install the version that saved it, or fit again."
            ) from error

    @classmethod
    def _of(cls, content: dict[str, Any]) -> Self:
        estimator = cls(**files.settings_from_plain(content["settings"]))
        estimator._keep(TableModel.from_plain(content["model"]))
        estimator.history_ = History(**content["history"])
        estimator.held_out_scores_ = content["held_out_scores"].numpy()
        return estimator

    def plot(self, ax: Any = None) -> Any:
        """Draw the losses of training and validation; return the axes of matplotlib."""
        check_is_fitted(self)
        return self.history_.plot(ax)

    def _check_parameters(self) -> None:
        """Raise unless all arguments are right, in ``fit`` as scikit-learn expects."""
        for name in ("num_blocks", "max_steps", "batch_size"):
            check_positive_int(getattr(self, name), name)
        for name in ("learning_rate", "patience"):
            check_positive(getattr(self, name), name)
        check_probability(self.validation_fraction, "validation_fraction")
        check_flag(self.progress, "progress")
        if self.options is not None:
            check_instance(self.options, BlockOptions, "options", "BlockOptions(lipschitz=0.9)")
        widths(self.hidden_features)
        check_columns(self.columns)
        check_trainer(self.trainer)

    def _fit(
        self, rows: Rows, context: Rows | None, kinds: Mapping[str, Column], folder: Path
    ) -> None:
        count, dim = rows.values.shape
        columns = fitted_columns(rows, kinds)
        fitted = None if context is None else fitted_context(context)
        small = is_small(count, dim)
        model = TableModel(
            TableEncoding.of(columns, sample_of(rows.values)),
            fitted,
            int(self.num_blocks),
            widths(self.hidden_features),
            options_for(small=small) if self.options is None else self.options,
            is_array=rows.is_array,
            has_actnorms=not small,
        )
        encoded = None
        if context is not None and fitted is not None:
            encoded = encoded_context(fitted, context.values)
        order = torch.randperm(count).numpy()
        number = min(max(1, round(self.validation_fraction * count)), count - 2)
        held_out, training = order[:number], order[number:]
        checks, between = checks_of(count, self.batch_size, self.max_steps)
        self.history_ = train(
            model.flow,
            RandomBatches(rows.values, encoded, training, model.encoding, self.batch_size, between),
            held_out,
            checks=checks,
            learning_rate=self.learning_rate,
            patience=self.patience,
            options=dict(self.trainer or {}),
            progress=self.progress,
            folder=folder,
        )
        model.flow.double().eval()
        scored = np.sort(held_out[:SCORED])
        part = None if encoded is None else encoded[scored]
        self.held_out_scores_ = model.scores(rows.values[scored], part)
        self._keep(model)

    def _keep(self, model: TableModel) -> None:
        """Store the fitted model, and the attributes that scikit-learn expects."""
        self.model_, self.flow_, self.encoding_ = model, model.flow, model.encoding
        self.columns_ = {column.name: column.kind for column in model.encoding.columns}
        self.n_features_in_ = len(model.encoding.columns)
        if model.is_array:
            vars(self).pop("feature_names_in_", None)
        else:
            names = [column.name for column in model.encoding.columns]
            self.feature_names_in_ = np.asarray(names, dtype=object)

"""Batches of the rows of a table."""

from collections.abc import Iterator
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from .columns import Values
from .encoding import TableEncoding

# Rows of one batch of validation.
VALIDATION_BATCH = 4096

Batch = tuple[Tensor, ...]


class RandomBatches(IterableDataset[Batch]):
    """Encoded batches of rows drawn with replacement, by torch's seed.

    Arguments:
        rows: the numbers of the table, in memory or in a file.
        context: the encoded context of each row, shape ``(n, C)``, or None.
        where: the positions of the rows to draw from.
        encoding: the encoding of a row; integers get fresh noise in each batch.
        size: the rows of a batch.
        count: the batches of an epoch.
    """

    def __init__(
        self,
        rows: Values,
        context: Values | None,
        where: np.ndarray,
        encoding: TableEncoding,
        size: int,
        count: int,
    ) -> None:
        self.rows, self.context, self.where, self.encoding = rows, context, where, encoding
        self.size, self.count = size, count
        # The positions of the rows of the last batch.
        self.drawn = where[:0]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.count):
            drawn = torch.randint(len(self.where), (self.size,)).numpy()
            # Rows of a file are read in its order.
            self.drawn = np.sort(self.where[drawn])
            yield self.batch(self.drawn)

    def batch(self, where: np.ndarray) -> Batch:
        """Return the encoded rows at some positions, with their context if there is one."""
        batch, _ = self.encoded(where)
        return batch

    def encoded(self, where: np.ndarray) -> tuple[Batch, Tensor]:
        """Return a batch as :meth:`batch`, and the sum of log |dz/dx| of each row."""
        z, slope = self.encoding.encode(torch.from_numpy(self.rows[where]))
        z = z.to(torch.get_default_dtype())
        if self.context is None:
            return (z,), slope
        return (z, torch.from_numpy(self.context[where]).to(z)), slope


class TableBatches(lightning.LightningDataModule):
    """Random batches to train on, and one encoding of the held-out rows, the same for all checks.

    Arguments:
        training: the batches of training.
        held_out: the positions of the rows of validation.

    Attributes:
        slope, train_slope: the mean of log |dz/dx| of the held-out rows, and of rows of training.
    """

    def __init__(self, training: RandomBatches, held_out: np.ndarray) -> None:
        super().__init__()
        parts = np.array_split(np.sort(held_out), -(-len(held_out) // VALIDATION_BATCH))
        encoded = [training.encoded(part) for part in parts]
        self.training = training
        self.validation: Any = [batch for batch, _ in encoded]
        self.slope = float(torch.cat([slope for _, slope in encoded]).mean())
        some = training.where[:: -(-len(training.where) // VALIDATION_BATCH)]
        # The noise of integers is of no use in training, and leaves torch's stream as it was.
        with torch.random.fork_rng(devices=[]):
            self.train_slope = float(training.encoded(np.sort(some))[1].mean())

    def setup(self, stage: str) -> None:
        """Share the rows of a step among the processes."""
        if self.trainer is not None:
            self.training.size = -(-self.training.size // self.trainer.world_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.training, batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.validation, batch_size=None)

"""The 1,797 handwritten 8x8 digits of scikit-learn on the real line, 1,500 to train on."""

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

LEVELS = 17
HELD_OUT = 297


@dataclass(frozen=True)
class Digits:
    """Grey levels of digits, and their map to the real line.

    Arguments:
        train, test: the grey levels 0 to 16, shape ``(n, 64)``.
    """

    train: Tensor
    test: Tensor

    @staticmethod
    def encode(x: Tensor) -> Tensor:
        """Return ``0.5 logit(0.05 + 0.9 (x + u) / 17)`` with u uniform in [0, 1)."""
        return 0.5 * torch.logit(0.05 + 0.9 * (x + torch.rand_like(x)) / LEVELS)

    def batch(self, size: int) -> Tensor:
        """Draw encoded rows of training."""
        return self.encode(self.train[torch.randint(0, len(self.train), (size,))])

    def held_out(self, draws: int) -> Tensor:
        """Return the held-out rows, encoded with several draws of the noise."""
        return torch.cat([self.encode(self.test) for _ in range(draws)])


def digits() -> Digits:
    """Split the digits, the same in every call."""
    rows = torch.as_tensor(load_digits(return_X_y=True)[0], dtype=torch.get_default_dtype())
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return Digits(rows[:-HELD_OUT], rows[-HELD_OUT:])

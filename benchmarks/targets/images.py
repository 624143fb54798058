"""Images for the report's tables, from a file that the user brings, and the small digits."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_iresnet.errors import ArgumentError

KEYS = ("x_train", "y_train", "x_test", "y_test")


class Images(NamedTuple):
    """Images as grey levels, shape ``(n, channels, height, width)``, uint8, and classes, int64."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    levels: int = 256

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image."""
        _, channels, height, width = self.x_train.shape
        return channels, height, width

    def held_out(self, count: int) -> "Images":
        """Return the images with the last ``count`` of training in place of the test images."""
        x, y = self.x_train, self.y_train
        return self._replace(
            x_train=x[:-count], y_train=y[:-count], x_test=x[-count:], y_test=y[-count:]
        )


def load(path: Path) -> Images:
    """Read an ``.npz`` file with ``x_train, y_train, x_test, y_test``.

    Images are uint8, shape ``(n, height, width)`` or ``(n, height, width, channels)``.
    """
    with np.load(path) as file:
        missing = [key for key in KEYS if key not in file]
        if missing:
            raise ArgumentError(
                f"Expected {path.name} to hold {', '.join(KEYS)}; {', '.join(missing)} is missing."
            )
        x_train, y_train, x_test, y_test = (file[key] for key in KEYS)
    return Images(
        path.stem,
        _channels_first(x_train),
        _classes(y_train),
        _channels_first(x_test),
        _classes(y_test),
    )


def digits() -> Images:
    """Return the 8 x 8 digits of scikit-learn, 17 levels, 1,500 and 297 of them."""
    found = load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(found.images).to(torch.uint8)[order, None]
    y = torch.from_numpy(found.target)[order]
    return Images("digits", x[:1500], y[:1500], x[1500:], y[1500:], levels=17)


def _channels_first(x: np.ndarray) -> Tensor:
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise ArgumentError(
            "Expected images of dtype uint8 and shape (n, height, width) or (n, height, width, "
            f"channels); got {x.dtype} and {x.shape}."
        )
    images = torch.from_numpy(x)
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()


def _classes(y: np.ndarray) -> Tensor:
    return torch.from_numpy(y.astype(np.int64).reshape(-1))

"""Average of the weights over the last tenth of training, whenever training ends."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class TenthAverage(WeightAveraging):
    r"""Average of the parameters over about the last tenth of the steps, at any step.

    .. math:: m_n = m_{n-1} + \frac{\theta_n - m_{n-1}}{1 + n / 10}

    gives the parameters of step k a weight in proportion to :math:`k^9`. The average takes out the
    noise of a constant learning rate, and needs no horizon, so early stopping can judge the average
    at any time. Validation, checkpoints and the module after ``fit`` have the average.

    Example:
        >>> from lightning import Trainer
        >>> from pyro_iresnet.training import TenthAverage
        >>> trainer = Trainer(callbacks=[TenthAverage()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        super().__init__(multi_avg_fn=_towards)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the average, which Lightning copied before, to the dtype of the module."""
        super().on_train_start(trainer, pl_module)
        average = self._average_model
        if average is not None:
            pairs = zip(average.module.parameters(), pl_module.parameters(), strict=True)
            for mean, value in pairs:
                mean.data = mean.data.to(value.dtype)


@torch.no_grad()
def _towards(means: Any, values: Any, count: Tensor | int) -> None:
    # The tensors of one call have one dtype; a mask or a counter has no mean.
    if means[0].is_floating_point():
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            means, values, 1 / (1 + 0.1 * float(count))
        )
    else:
        for mean, value in zip(means, values, strict=True):
            mean.copy_(value)

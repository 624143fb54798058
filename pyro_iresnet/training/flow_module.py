"""Lightning module of a density estimator."""

import math
from collections.abc import Sequence
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.plugins import MixedPrecision
from pyro.distributions import ConditionalTransformedDistribution
from torch import Tensor, nn
from torch.distributions import TransformedDistribution

from .._modules import evaluating, modules_of, outermost
from ..errors import ArgumentError, ArgumentTypeError, check_positive, check_positive_int
from .non_finite import check_loss
from .randomness import FollowsTorchSeed

Batch = Tensor | Sequence[Tensor]
OfPyro = TransformedDistribution | ConditionalTransformedDistribution


class FlowModule(FollowsTorchSeed, lightning.LightningModule):
    r"""Training of a flow by maximum likelihood: the mean of :math:`-\log p(x \mid c)`.

    Adam at a constant learning rate behind a linear warm-up. Average the weights in place of a
    schedule (:class:`TenthAverage`), and clip gradients in the trainer. A batch is ``x``, ``(x,)``
    or ``(x, context)``. ``train_loss``, ``val_loss`` and ``test_loss`` are logged, in nats;
    ``trainer.predict`` returns the log-density of each row.

    The flow keeps its parameters, so blocks freeze one by one. ``pack_blocks(flow)`` before makes a
    step faster; packed blocks freeze together. A checkpoint keeps ``learning_rate`` and ``warmup``,
    for ``FlowModule.load_from_checkpoint(path, flow=flow)``, and loads into a flow packed or not; a
    training resumes with a flow packed as at the start, because of the state of Adam.

    Arguments:
        flow: an nflows ``Flow`` or another module with a ``log_prob``, or a
            ``TransformedDistribution`` of Pyro, conditional or not, of which the modules among the
            transforms are trained.
        learning_rate: the rate after the warm-up.
        warmup: the number of steps over which the rate grows.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.
        NonFiniteLossError: in training, for a loss that is NaN or infinite.

    Example:
        >>> import torch
        >>> from lightning import Trainer
        >>> from torch.utils.data import DataLoader
        >>> from pyro_iresnet import iresnet_flow
        >>> from pyro_iresnet.training import FlowModule, TenthAverage
        >>> flow = iresnet_flow(2, num_blocks=2)
        >>> trainer = Trainer(
        ...     max_steps=2,
        ...     gradient_clip_val=10.0,
        ...     callbacks=[TenthAverage()],
        ...     accelerator="cpu",
        ...     logger=False,
        ...     enable_checkpointing=False,
        ...     enable_progress_bar=False,
        ...     enable_model_summary=False,
        ... )
        >>> trainer.fit(FlowModule(flow), DataLoader(torch.randn(64, 2), batch_size=32))
        >>> flow.eval().log_prob(torch.zeros(1, 2)).shape
        torch.Size([1])
    """

    def __init__(
        self, flow: nn.Module | OfPyro, *, learning_rate: float = 5e-3, warmup: int = 100
    ) -> None:
        super().__init__()
        is_density = isinstance(flow, nn.Module) and callable(getattr(flow, "log_prob", None))
        if not is_density and not isinstance(flow, OfPyro):
            raise ArgumentTypeError(
                "Expected flow to be a module with a log_prob, such as iresnet_flow(2), or a "
                f"TransformedDistribution of Pyro; got {type(flow).__name__}."
            )
        self.learning_rate = learning_rate = check_positive(learning_rate, "learning_rate")
        self.warmup = warmup = check_positive_int(warmup, "warmup", 0)
        # Lightning reads the names from the frame of this call.
        self.save_hyperparameters("learning_rate", "warmup")
        # A distribution is no module: its parameters live in its transforms.
        self.density: tuple[Any] = (flow,)
        self._reads_context: bool | None = None
        self.parts = nn.ModuleList(outermost(modules_of(flow)))

    def log_prob(self, batch: Batch) -> Tensor:
        """Return the log-density of each row of a batch, nats."""
        x, *context = _tensors(batch)
        (flow,) = self.density
        is_conditional = isinstance(flow, ConditionalTransformedDistribution)
        if is_conditional and not context:
            raise ArgumentError("Expected batches of (x, context) for this flow; got x alone.")
        if context and not is_conditional and not self._reads(x, *context):
            raise ArgumentError(
                "Expected batches of x or (x,) for this flow, which reads no context; got 2 "
                "tensors. Leave the second out, or make a conditional flow."
            )
        if not isinstance(flow, OfPyro):
            return flow.log_prob(x, *context)
        if isinstance(flow, ConditionalTransformedDistribution):
            flow = flow.condition(*context)
        # The transforms remember their last call, with the parameters of then.
        cast(Any, flow).clear_cache()
        return flow.log_prob(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        log_prob = self.log_prob(batch)
        loss = -log_prob.mean()
        check_loss(self, loss, log_prob)
        self.log("train_loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a batch of validation."""
        self._log_mean("val_loss", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a batch of test rows."""
        self._log_mean("test_loss", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the log-density of each row, nats."""
        return self.log_prob(batch)

    def _reads(self, x: Tensor, context: Tensor) -> bool:
        """Return False for a flow with a density under a context of NaN."""
        (flow,) = self.density
        if isinstance(flow, OfPyro):
            return False
        # The network of a user is there for a context, and may fill in for NaN.
        embedding = getattr(flow, "_embedding_net", None)
        if self._reads_context is None and isinstance(embedding, nn.Identity):
            try:
                with evaluating(modules_of(flow)), torch.no_grad():
                    nan = x.new_full(context[:1].shape, math.nan)
                    self._reads_context = not bool(flow.log_prob(x[:1], nan).isfinite().any())
            except Exception:
                # The call with the context itself says more.
                return True
        return self._reads_context is not False

    def _log_mean(self, name: str, batch: Batch) -> None:
        log_prob = self.log_prob(batch)
        self.log(name, -log_prob.mean(), prog_bar=True, sync_dist=True, batch_size=len(log_prob))

    def configure_optimizers(self) -> Any:
        """Return Adam and the warm-up."""
        # Lightning clips no gradients of a fused optimiser under mixed precision.
        fused = not isinstance(self.trainer.precision_plugin, MixedPrecision)
        adam = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=fused)
        return warmed_up(adam, self.warmup)


def _tensors(batch: Batch) -> Sequence[Tensor]:
    """Return the one or two tensors of a batch, or raise."""
    parts = [batch] if isinstance(batch, Tensor) else batch
    if not isinstance(parts, list | tuple) or len(parts) not in (1, 2):
        size = f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
        got = f"{type(batch).__name__}{size}"
    elif all(isinstance(part, Tensor) for part in parts):
        return parts
    else:
        got = f"{type(batch).__name__} of {', '.join(type(part).__name__ for part in parts)}"
    raise ArgumentTypeError(
        f"Expected batch to be x, (x,) or (x, context), of tensors; got a {got}. Let the "
        "DataLoader return these tensors alone."
    )


def warmed_up(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """Return the optimiser with a linear warm-up, as Lightning expects the two."""
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(1, steps))
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "interval": "step"},
    }

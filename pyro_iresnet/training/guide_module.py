"""Lightning module of variational inference."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceTailAdaptive_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from ..errors import ArgumentTypeError, check_instance, check_positive, check_positive_int
from .flow_module import warmed_up
from .non_finite import check_loss
from .randomness import FollowsTorchSeed


class GuideModule(FollowsTorchSeed, lightning.LightningModule):
    """Training of a Pyro guide by the ELBO.

    A batch holds the arguments of the model: a tensor, a tuple or list of arguments, or a dict of
    keywords. For a model without arguments take batches of ``()``, such as
    ``DataLoader([()] * steps, batch_size=None)``. ``train_loss`` is logged, in nats. A
    checkpoint keeps ``learning_rate`` and ``warmup``; give ``load_from_checkpoint`` the rest.

    Arguments:
        model: the model.
        guide: a guide that is a module, such as any autoguide.
        example: arguments of the model, with which the guide is set up: ``(x,)`` for ``model(x)``,
            or a dict of keywords.
        loss: ``Trace_ELBO()``, the default, or another loss of Pyro with a ``differentiable_loss``,
            such as ``TraceEnum_ELBO()`` or ``TraceTMC_ELBO()``.
        learning_rate: the rate of Adam after the warm-up.
        warmup: the number of steps over which the rate grows.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.
        NonFiniteLossError: in training, for a loss that is NaN or infinite.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from lightning import Trainer
        >>> from torch.utils.data import DataLoader
        >>> from pyro_iresnet import AutoIResNet
        >>> from pyro_iresnet.training import GuideModule
        >>> pyro.clear_param_store()
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        >>> guide = AutoIResNet(model, num_blocks=2)
        >>> trainer = Trainer(
        ...     max_steps=2,
        ...     accelerator="cpu",
        ...     logger=False,
        ...     enable_checkpointing=False,
        ...     enable_progress_bar=False,
        ...     enable_model_summary=False,
        ... )
        >>> trainer.fit(GuideModule(model, guide), DataLoader([()] * 2, batch_size=None))
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: nn.Module,
        example: Sequence[Any] | dict[str, Any] = (),
        *,
        loss: ELBO | None = None,
        learning_rate: float = 1e-2,
        warmup: int = 100,
    ) -> None:
        super().__init__()
        if not callable(model):
            raise ArgumentTypeError(f"Expected model to be a function or a module; got {model!r}.")
        if not isinstance(example, list | tuple | dict):
            raise ArgumentTypeError(
                "Expected example to be a tuple of arguments of the model, such as (x,), or a dict "
                f"of keywords; got {type(example).__name__}."
            )
        if loss is not None:
            check_instance(loss, ELBO, "loss", "Trace_ELBO()")
            # The value of the tail-adaptive loss is infinite throughout.
            untold = isinstance(loss, TraceTailAdaptive_ELBO)
            if untold or not hasattr(loss, "differentiable_loss"):
                raise ArgumentTypeError(
                    "Expected loss to be one with a value that torch differentiates: Trace_ELBO(), "
                    "TraceEnum_ELBO() or TraceTMC_ELBO(); got "
                    f"{type(loss).__name__}. Take pyro.infer.SVI for other losses."
                )
        if not isinstance(guide, nn.Module):
            raise ArgumentTypeError(
                "Expected guide to be a module, such as AutoIResNet(model); got "
                f"{type(guide).__name__}."
            )
        # A model that is a module is trained too, as pyro.infer.SVI does.
        self.model, self.guide = model, guide
        self.loss: Any = Trace_ELBO() if loss is None else loss
        self.learning_rate = learning_rate = check_positive(learning_rate, "learning_rate")
        self.warmup = warmup = check_positive_int(warmup, "warmup", 0)
        # Lightning reads the names from the frame of this call.
        self.save_hyperparameters("learning_rate", "warmup")
        args, keywords = _arguments(example)
        for name, called in (("model", model), ("guide", guide)):
            try:
                inspect.signature(_told(called)).bind(*args, **keywords)
            except ValueError:
                # Some wrappers of Pyro have no signature; a wrong call raises below.
                continue
            except TypeError as error:
                raise ArgumentTypeError(
                    f"Expected example to hold arguments that the {name} takes, such as (x,); got "
                    f"{len(example)} arguments, and with these: {error}"
                ) from error
        guide(*args, **keywords)
        self._check_parameters(args, keywords)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        args, keywords = _arguments(batch)
        loss = self.loss.differentiable_loss(self.model, self.guide, *args, **keywords)
        check_loss(self, loss, None)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """Return Adam and the warm-up."""
        return warmed_up(torch.optim.Adam(self.parameters(), lr=self.learning_rate), self.warmup)

    def _check_parameters(self, args: Sequence[Any], keywords: dict[str, Any]) -> None:
        """Raise if the model or the guide has a parameter outside its modules."""
        with poutine.trace(param_only=True) as capture, torch.no_grad():
            self.loss.loss(self.model, self.guide, *args, **keywords)
        known = {id(p) for p in self.parameters()}
        sites: dict[str, Any] = dict(capture.trace.nodes)
        for name, site in sites.items():
            if site["type"] == "param" and id(site["value"].unconstrained()) not in known:
                raise ArgumentTypeError(
                    f"Expected parameters of modules; got pyro.param({name!r}), which Lightning "
                    "does not see. Make it a PyroParam of a PyroModule."
                )


def _told(called: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that names the arguments of a function or a module."""
    # The call of a module takes anything; a messenger has that call alone.
    if isinstance(called, nn.Module) and type(called).forward is not nn.Module.forward:
        return called.forward
    return called


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and the keywords that a batch or an example holds."""
    if isinstance(batch, dict):
        return (), batch
    return tuple(batch) if isinstance(batch, list | tuple) else (batch,), {}

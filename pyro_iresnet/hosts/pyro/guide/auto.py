"""A guide that is one line: blocks inside a learned linear autoregressive map."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, AutoNormalizingFlow, init_to_feasible
from torch import Tensor
from torch.distributions import biject_to

from ...._modules import modules_of_kind
from ....activations import LipSwish
from ....blocks import Block, pack_blocks
from ....errors import (
    ArgumentError,
    ArgumentTypeError,
    check_flag,
    check_positive,
    check_positive_int,
)
from ....logdet import Exact
from ....options import BlockKeywords, BlockOptions
from ..builders import iresnet_stack
from ..linear_autoregressive import LinearAutoregressive
from ..mcmc import drawn_density
from ..stack import Stack
from .log_joint import LogJoint
from .path_gradients import PathDistribution
from .sites import check_sites, latent_sites
from .start import STARTS, find_start
from .store import keep_in_store, take_from_store

# Up to this number of coordinates a guide's log-determinant is exact in training too: for a few
# particles exactness costs less than the noise of a draw.
EXACT = 48


class AutoIResNet(AutoNormalizingFlow):
    r"""A Pyro guide of invertible blocks inside a learned linear autoregressive map.

    On the unconstrained scale of all continuous sites together it is

    .. math:: z = a\big((f_n \circ \dots \circ f_1)(u)\big), \qquad u \sim N(0, I),

    where each :math:`f_i` is a block, and :math:`a` is a :class:`LinearAutoregressive`: a location,
    a lower-triangular scale, and scales whose logarithms are linear in the coordinates before.
    :math:`a` takes care of the Gaussian part of the posterior, and of a standard deviation that
    scales the sites sampled after it, so that the blocks only bend. The blocks start near the
    identity and :math:`a` starts as an affine map, so the guide starts near a normal distribution.
    The blocks are packed: an optimiser has one tensor for each weight of all blocks, as
    :func:`pack_blocks` says.

    Change first: ``num_blocks``, then the steps and particles of SVI. Judge the fit with
    :func:`pyro_iresnet.diagnostics.psis`. For :class:`~pyro.infer.reparam.NeuTraReparam` call
    ``guide.eval()`` first.

    Arguments:
        model: a Pyro model whose latent sites are continuous, unmasked, and in full plates.
        num_blocks: the number of blocks.
        hidden_dims: the widths of the hidden layers of each; default one of twice the number of
            coordinates, at least 64 and at most 512.
        init_loc_fn: gives the start of a site, one of Pyro's ``init_to_...``.
        init: ``"plain"`` starts at the point of ``init_loc_fn`` with ``init_scale``; ``"laplace"``
            from the Laplace approximation at a mode, searched for from the same point; ``"auto"``
            from the start with the larger ELBO (and plainly above 200 coordinates, if the model
            subsamples its data, or inside ``poutine.block``), so that only ``"plain"`` is sure to
            keep the point.
        init_scale: the standard deviation of the plain start, on the unconstrained scale; by
            default 1.0 or 0.1, the one with the larger ELBO (0.1 if the model subsamples its data).
        path_gradients: True for a gradient of the ELBO without the part of the log-density that is
            zero on average (Roeder, Wu and Duvenaud, 2017).
        options: of each block, as in :func:`iresnet_stack`: ``block``, ``lipschitz``,
            ``activation``, ``norm``, ``coordinates``, ``logdet``, ``solver``, ``options``.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type. In the
            first call: a latent site is masked, or in a plate that subsamples.
        LaplaceError: ``init="laplace"``, and the posterior has no usable mode.

    References:
        Invertible Residual Networks (Behrmann et al., 2019). Variational Inference with Normalizing
        Flows (Rezende and Mohamed, 2015).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_iresnet import AutoIResNet
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x**2, 0.3))
        >>> guide = AutoIResNet(model)
        >>> elbo = Trace_ELBO(num_particles=16, vectorize_particles=True)
        >>> svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), elbo)
        >>> losses = [svi.step() for _ in range(3)]
        >>> sorted(guide.median())
        ['x', 'y']
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_blocks: int = 8,
        *,
        hidden_dims: Sequence[int] | None = None,
        init_loc_fn: Callable[..., Any] = init_to_feasible,
        init: str = "auto",
        init_scale: float | None = None,
        path_gradients: bool = True,
        **options: Unpack[BlockKeywords],
    ) -> None:
        if not callable(model):
            raise ArgumentTypeError(f"Expected model to be a callable; got {model!r}.")
        if not callable(init_loc_fn):
            raise ArgumentTypeError(
                "Expected init_loc_fn to be a callable, such as init_to_median; "
                f"got {init_loc_fn!r}."
            )
        path_gradients = check_flag(path_gradients, "path_gradients")
        if init not in STARTS:
            raise ArgumentError(f"Expected init to be one of {', '.join(STARTS)}; got {init!r}.")
        # AutoNormalizingFlow's own would fix init_loc_fn and register a parameter twice.
        AutoContinuous.__init__(self, model, init_loc_fn=init_loc_fn)
        self._users_model = (model,)
        self.num_blocks = check_positive_int(num_blocks, "num_blocks")
        self.options = BlockOptions.records(options, type(self), hidden_dims=hidden_dims)
        # Wrong options raise here, and not at the first step of SVI.
        self._blocks(2)
        if init_scale is not None:
            init_scale = check_positive(init_scale, "init_scale")
        self.init, self.init_scale = init, init_scale
        self.path_gradients = path_gradients
        self.num_draws = 10_000
        self.transform: Stack | None = None

    def get_base_dist(self) -> Any:
        """Return a standard normal distribution over all coordinates."""
        like = self._outer().shift
        normal: Any = dist.Normal(like.new_zeros(1), like.new_ones(1))
        return normal.expand([self.latent_dim]).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Stack:
        """Return the flow from the base distribution to the unconstrained scale, for NeuTra.

        Raises :class:`ArgumentError` in train mode with a log-determinant that is drawn anew in
        each call, which no HMC could follow.
        """
        stack = self._stack()
        for block in modules_of_kind(stack, Block, nested=False):
            logdet = block.estimator(self.latent_dim)
            if logdet.stochastic:
                raise drawn_density("guide", type(logdet).__name__)
        return stack

    def get_posterior(self, *args: Any, **kwargs: Any) -> dist.TransformedDistribution:
        """Return the distribution over the unconstrained scale.

        ``args`` and ``kwargs`` are those of the model, which runs in the first call only.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        kind = PathDistribution if self.path_gradients else dist.TransformedDistribution
        base = self.get_base_dist()
        keep_in_store(self._stack(), f"{self._pyro_name}.transform")
        # By its name, once: here Pyro learns of the parameters.
        return kind(base, [self.transform])

    def median(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return the median of each coordinate of each site, from ``num_draws`` draws.

        Each median is that of a marginal distribution. Together the medians need not be a likely
        point, nor lie in a support that ties coordinates to each other, such as a simplex.
        """
        return {name: q[0] for name, q in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor | np.ndarray, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Return quantiles of each coordinate, by site, shape ``(len(quantiles), *site)``.

        ``num_draws`` draws give the quantiles; ``args`` and ``kwargs`` are those of the model. A
        quantile outside [0, 1] raises :class:`ArgumentError`.
        """
        if not isinstance(quantiles, Tensor | Sequence | np.ndarray) or isinstance(quantiles, str):
            raise ArgumentTypeError(
                "Expected quantiles to be a list or a tensor such as [0.05, 0.95]; "
                f"got {quantiles!r}."
            )
        latent = self.get_posterior(*args, **kwargs).sample((self.num_draws,))
        levels = torch.as_tensor(quantiles, dtype=latent.dtype, device=latent.device)
        if levels.dim() != 1 or not bool(((levels >= 0) & (levels <= 1)).all()):
            raise ArgumentError(
                f"Expected quantiles to be a list of numbers in [0, 1]; got {quantiles!r}."
            )
        found, begin = {}, 0
        trace: Any = self.prototype_trace
        for name, site in trace.iter_stochastic_nodes():
            shape = self._unconstrained_shapes[name]
            part = latent[:, begin : begin + shape.numel()].reshape(-1, *shape)
            begin += shape.numel()
            value = biject_to(site["fn"].support)(part)
            columns = value.reshape(len(value), -1)
            # In parts, since older releases of torch take no more than 2^24 numbers at once.
            size = max(1, 2**24 // len(columns))
            parts = [torch.quantile(c, levels, dim=0) for c in columns.split(size, dim=1)]
            found[name] = torch.cat(parts, dim=1).reshape(-1, *value.shape[1:])
        return found

    def _create_plates(self, *args: Any, **kwargs: Any) -> Any:
        # Replayed in the model, the indices of a full plate would hide that its size has changed.
        with poutine.block():
            return super()._create_plates(*args, **kwargs)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        try:
            # Parameters that are made under inference_mode would never train.
            with torch.inference_mode(False):
                super()._setup_prototype(*args, **kwargs)
                self._set_up(args, kwargs)
        except Exception:
            # The next call begins anew.
            self.prototype_trace = self.transform = None
            raise

    def _set_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_sites(latent_sites(self.prototype_trace))
        loc = self._init_loc()
        stack = Stack([*self._blocks(self.latent_dim), LinearAutoregressive(len(loc))])
        if not bool(loc.isfinite().all()):
            raise ArgumentError(
                "Expected init_loc_fn to give finite values inside the support of each site; on "
                f"the unconstrained scale it gave {loc.tolist()}."
            )
        scale = self.init_scale
        if scale is not None and not 0 < float(loc.new_tensor(scale)) < math.inf:
            raise ArgumentError(
                f"Expected init_scale to be a number that {loc.dtype} tells from 0 and infinity; "
                f"got {scale}."
            )
        self.transform = stack.to(device=loc.device, dtype=loc.dtype).train(self.training)
        # In a list of guides the model hides, from each guide, the sites that the others know.
        log_joint = None
        if self.master is None:
            log_joint = LogJoint(self, self._users_model[0], args, kwargs)
        start = find_start(self.init, scale, loc, log_joint)
        self._outer().start_at(start.loc, start.scale_tril)
        take_from_store(stack, f"{self._pyro_name}.transform")

    def _blocks(self, dim: int) -> list[Any]:
        """Make the blocks for a number of coordinates."""
        records = []
        for options in self.options:
            if options.hidden_dims is None:
                options = replace(options, hidden_dims=[min(max(64, 2 * dim), 512)])
            if options.activation is None:
                # A posterior is smooth, and its tails are wide: a sine does worse there.
                options = replace(options, activation=LipSwish)
            if options.logdet is None and dim <= EXACT:
                options = replace(options, logdet=Exact())
            records.append(options)
        parts = list(iresnet_stack(dim, self.num_blocks, between=None, options=records).parts)
        # Pyro and its optimisers work tensor by tensor.
        pack_blocks(parts)
        return parts

    def _stack(self) -> Stack:
        # Not by its name: with each access Pyro registers every parameter anew.
        stack = self._modules.get("transform")
        if not isinstance(stack, Stack):
            raise ArgumentError(
                "Expected a guide that has seen its model; call guide(*args), with the arguments "
                "of the model, or take a step of SVI first."
            )
        return stack

    def _outer(self) -> LinearAutoregressive:
        [*_, outer] = self._stack().parts
        return outer  # pyright: ignore[reportReturnType]

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: Any, prefix: str, *arguments: Any
    ) -> None:
        if any(name.startswith(f"{prefix}transform.") for name in state_dict):
            # Torch would list the parameters of the flow as unexpected.
            self._stack()
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's own drops the model from the guide that is copied, too.
        model, master = self._model, self.master
        state = dict(super().__getstate__())
        self._model, self.master = model, master
        return {**state, "_users_model": (None,)}

    def __deepcopy__(self, memo: dict[int, Any]) -> "AutoIResNet":
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        vars(other).update(_model=self._model, _users_model=self._users_model)
        return other

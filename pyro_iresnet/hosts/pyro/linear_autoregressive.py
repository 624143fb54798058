"""An autoregressive transform for Pyro, whose shifts and log-scales are linear."""

import torch
from pyro.distributions import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from ..._torch import COARSE, full_precision
from ...blocks import Evaluation
from ...errors import (
    ArgumentError,
    ArgumentTypeError,
    check_dense,
    check_positive_int,
    check_tensor,
)
from .cached_transform import CachedTransform

# The most that earlier coordinates change the logarithm of a scale, up or down: e^10 is below the
# largest number of half precision.
LIMIT = 10.0
# The unit of A in the parameters. With a unit of 1 the first steps of Adam change many scales at
# once, and one guide of four ended far off on a banana.
UNIT = 0.3
# The most entries of triangular matrices that are made at once, one matrix for each row.
ENTRIES = 2**22


class LinearAutoregressive(CachedTransform, TransformModule):
    r"""A learned map whose shifts and log-scales are linear in earlier coordinates.

    .. math:: y = m_0 + C_0 \big(m + e^{s} \odot (N x + e^{A x} \odot x)\big)

    with :math:`N, A` strictly lower triangular, and :math:`A x` kept within [-10, 10]. :math:`m, s,
    N, A` are learned and start at 0; :math:`m_0, C_0` stay as :meth:`start_at` sets them. With
    :math:`A = 0` the map is affine, and makes any normal distribution of a standard normal one. A
    row of :math:`A` scales one coordinate by those before, as a hierarchical model scales effects
    by a standard deviation that is sampled first. The learned parameters are measured in standard
    deviations of the start, so a step of Adam suits a direction a thousand times narrower than
    another.

    The Jacobian is triangular, and :math:`\log|\det| = \log|\det C_0| + \sum_i (s + A x)_i`. The
    inverse takes one coordinate after the other, and is the less precise the more the scales
    differ. A product with the inverse Jacobian solves a triangular system for each row: with
    hundreds of coordinates this takes longer than a block.

    Arguments:
        input_dim, cache_size: as in :class:`ActNorm`, with the same errors.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), with
        linear functions in place of networks.

    Example:
        >>> import torch
        >>> transform = LinearAutoregressive(2)
        >>> transform.start_at(torch.ones(2), torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
        >>> transform(torch.ones(2)).tolist()
        [3.0, 5.0]
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, input_dim: int, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.input_dim = input_dim = check_positive_int(input_dim, "input_dim")
        # Parameters without a gradient, since Pyro's parameter store keeps no buffers. A guide that
        # came back from the store with another start would be another guide.
        self.start_loc = nn.Parameter(torch.zeros(input_dim))
        self.start_scale_tril = nn.Parameter(torch.eye(input_dim))
        self.shift = nn.Parameter(torch.zeros(input_dim))
        self.log_scale = nn.Parameter(torch.zeros(input_dim))
        # N below the diagonal, and the transpose of A / UNIT above: one tensor for an optimiser.
        self.weight = nn.Parameter(torch.zeros(input_dim, input_dim))

    @property
    def loc(self) -> Tensor:
        """Return the image of 0, shape ``(D,)``."""
        return self.start_loc.detach() + self.start_scale_tril.detach() @ self.shift

    @torch.no_grad()
    def start_at(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Start at a normal distribution, and set the learned parameters back to 0.

        ``loc`` has the shape ``(D,)``; ``scale_tril`` is lower triangular with a positive diagonal,
        shape ``(D, D)``. Other or infinite values raise :class:`ArgumentError`.
        """
        size = self.input_dim
        for name, value in (("loc", loc), ("scale_tril", scale_tril)):
            check_dense(value, name)
            if value.is_meta:
                raise ArgumentTypeError(f"Expected {name} to have values; got a tensor on meta.")
        if loc.shape != (size,) or scale_tril.shape != (size, size):
            raise ArgumentError(
                f"Expected loc of shape {(size,)} and scale_tril of {(size, size)}; got "
                f"{tuple(loc.shape)} and {tuple(scale_tril.shape)}."
            )
        finite = bool(loc.isfinite().all()) and bool(scale_tril.isfinite().all())
        if not finite or not bool((scale_tril.diagonal() > 0).all()):
            raise ArgumentError("Expected loc and scale_tril finite, with a positive diagonal.")
        if bool(scale_tril.triu(1).any()):
            raise ArgumentError("Expected scale_tril lower triangular; it has entries above.")
        self.start_loc.copy_(loc)
        self.start_scale_tril.copy_(scale_tril)
        for learned in (self.shift, self.log_scale, self.weight):
            learned.zero_()

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one event."""
        return (self.input_dim,)

    def check(self, x: Tensor, name: str) -> Tensor:
        # As in ActNorm: a scale of another shape would broadcast in x alone.
        check_tensor(x, tuple(self.log_scale.shape), self.log_scale, name)
        return x

    def evaluate(self, x: Tensor) -> Evaluation:
        with full_precision(x):
            below, above = self.weight.tril(-1), self._above()
            change = (x @ above).clamp(-LIMIT, LIMIT)
            factor = change.exp()
            inner = x @ below.mT + factor * x
            relative = self.shift + self.log_scale.exp() * inner
            y = self.start_loc.detach() + relative @ self.start_scale_tril.detach().mT
            return self._evaluation(x, y, change, factor, below, above)

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        with full_precision(y):
            rows = (y - self.start_loc.detach()).reshape(-1, self.input_dim)
            relative = _solve(self.start_scale_tril.detach(), rows.mT, upper=False).mT
            inner = (relative - self.shift) * (-self.log_scale).exp()
            below, above = self.weight.tril(-1), self._above()
            change, columns = torch.zeros_like(inner), []
            for i in range(self.input_dim):
                x = inner[:, i, None] * (-change[:, i, None].clamp(-LIMIT, LIMIT)).exp()
                columns.append(x)
                inner = inner - x * below[:, i]
                change = change + x * above[i]
            x = torch.cat(columns, 1).reshape(y.shape)
            change = change.clamp(-LIMIT, LIMIT).reshape(y.shape)
            return self._evaluation(x, y, change, change.exp(), below, above)

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}"

    def _above(self) -> Tensor:
        """Return the transpose of ``A``."""
        return UNIT * self.weight.triu(1)

    def _evaluation(
        self, x: Tensor, y: Tensor, change: Tensor, factor: Tensor, below: Tensor, above: Tensor
    ) -> Evaluation:
        """Make the evaluation.

        Arguments:
            x, y: the pair.
            change, factor: ``A x`` within its limits, and its exponential.
            below, above: ``N`` and the transpose of ``A``.
        """

        def log_det() -> Tensor:
            start = self.start_scale_tril.detach().diagonal().log().sum()
            return start + self.log_scale.sum() + change.sum(-1)

        def inner_slope() -> Tensor:
            """Return how a change of the scales moves ``exp(A x) x``."""
            moved = change.detach().abs() < LIMIT
            return factor.detach() * x.detach() * moved

        def vjp(w: Tensor) -> Tensor:
            with full_precision(w):
                w = (w @ start) * scale
                through_scale = (w * inner_slope()) @ above.detach().mT
                return w @ below.detach() + w * factor.detach() + through_scale

        def inverse_vjp(w: Tensor) -> Tensor:
            with full_precision(w):
                count = max(1, ENTRIES // self.input_dim**2)
                parts = [
                    t.reshape(-1, self.input_dim).split(count)
                    for t in (w, factor.detach(), inner_slope())
                ]
                inner = [
                    _divided(rows, factors, slopes, below.detach(), above.detach())
                    for rows, factors, slopes in zip(*parts, strict=True)
                ]
                rows = torch.cat(inner) / scale
                return _solve(start.mT, rows.mT, upper=True).mT.reshape(w.shape)

        start, scale = self.start_scale_tril.detach(), self.log_scale.detach().exp()
        return Evaluation(x, y, log_det, vjp, inverse_vjp)


def _divided(rows: Tensor, factors: Tensor, slopes: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """Return each row times the inverse of the Jacobian of ``N x + exp(A x) x``."""
    turned = (factors.diag_embed() + below).mT + above * slopes[:, None]
    return _solve(turned, rows[..., None], upper=True)[..., 0]


def _solve(matrix: Tensor, columns: Tensor, *, upper: bool) -> Tensor:
    """Return the solution x of ``matrix @ x = columns``."""
    if columns.dtype in COARSE:
        return _solve(matrix.float(), columns.float(), upper=upper).to(columns)
    return torch.linalg.solve_triangular(matrix, columns, upper=upper)

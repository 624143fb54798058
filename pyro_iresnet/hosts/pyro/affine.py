"""A learned location and triangular scale for Pyro, for the part of a guide that is Gaussian."""

import torch
from pyro.distributions import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from ..._torch import COARSE, full_precision
from ...blocks import Evaluation
from ...errors import (
    ArgumentError,
    ArgumentTypeError,
    check_cache_size,
    check_dense,
    check_positive_int,
    check_tensor,
)
from .cached_transform import CachedTransform


class TriangularAffine(CachedTransform, TransformModule):
    r"""A learned location and lower-triangular scale, relative to a start.

    .. math:: y = m_0 + C_0 \big(m + \mathrm{diag}(e^{s})\,(I + N)\, x\big)

    with :math:`N` strictly lower triangular; :math:`m, s, N` are learned and start at 0, and
    :math:`m_0, C_0` stay as :meth:`start_at` sets them. The transform makes any normal distribution
    of a standard normal one. Behind a stack of blocks it takes care of location, scale and
    correlation, and the blocks only bend. The learned parameters are measured in standard
    deviations of the start, so a step of Adam suits a direction a thousand times narrower than
    another.

    Arguments:
        input_dim, cache_size: as in :class:`ActNorm`, with the same errors.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch
        >>> transform = TriangularAffine(2)
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
        self.below = nn.Parameter(torch.zeros(input_dim, input_dim))

    @property
    def loc(self) -> Tensor:
        """Return the image of 0, shape ``(D,)``."""
        return self.start_loc.detach() + self.start_scale_tril.detach() @ self.shift

    @property
    def scale_tril(self) -> Tensor:
        """Return the lower-triangular matrix, shape ``(D, D)``."""
        eye = torch.eye(self.input_dim, dtype=self.below.dtype, device=self.below.device)
        relative = self.log_scale.exp()[:, None] * (self.below.tril(-1) + eye)
        return self.start_scale_tril.detach() @ relative

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
        for learned in (self.shift, self.log_scale, self.below):
            learned.zero_()

    def _call(self, x: Tensor) -> Tensor:
        return self.evaluation(x=x).y

    def _inverse(self, y: Tensor) -> Tensor:
        return self.evaluation(y=y).x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log|det dy/dx|``, the same for every ``x``, shape ``(*batch,)``."""
        return self.log_det_at(x, y)

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
            scale_tril = self.scale_tril
            return self._evaluation(x, self.loc + x @ scale_tril.mT, scale_tril)

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        with full_precision(y):
            scale_tril = self.scale_tril
            rows = (y - self.loc).reshape(-1, self.input_dim)
            x = _solve(scale_tril, rows, upper=False)
            return self._evaluation(x.reshape(y.shape), y, scale_tril)

    def with_cache(self, cache_size: int = 1) -> "TriangularAffine":
        """Return the transform, parameters shared, with another cache."""
        if check_cache_size(cache_size) == self._cache_size:
            return self
        other = TriangularAffine(self.input_dim, cache_size=cache_size)
        other._parameters = self._parameters
        other.training = self.training
        return other

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}"

    def _evaluation(self, x: Tensor, y: Tensor, scale_tril: Tensor) -> Evaluation:
        def log_det() -> Tensor:
            start = self.start_scale_tril.detach().diagonal().log().sum()
            return (start + self.log_scale.sum()).expand(x.shape[:-1])

        def vjp(w: Tensor) -> Tensor:
            with full_precision(w):
                return w @ lower

        def inverse_vjp(w: Tensor) -> Tensor:
            with full_precision(w):
                rows = w.reshape(-1, self.input_dim)
                return _solve(lower.mT, rows, upper=True).reshape(w.shape)

        lower = scale_tril.detach()
        return Evaluation(x, y, log_det, vjp, inverse_vjp)


def _solve(matrix: Tensor, rows: Tensor, *, upper: bool) -> Tensor:
    """Return the solution x of ``matrix @ x = row`` for each row."""
    if rows.dtype in COARSE:
        return _solve(matrix.float(), rows.float(), upper=upper).to(rows)
    return torch.linalg.solve_triangular(matrix, rows.mT, upper=upper).mT

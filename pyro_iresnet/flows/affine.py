"""A learned location and triangular scale for Pyro: what a guide's blocks need not bend."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..adapters.memo import Evaluated, MemoTransform
from ..errors import ArgumentError, check_positive_int, check_tensor


class TriangularAffine(MemoTransform):
    r"""A learned location and lower-triangular scale, relative to where it starts.

    .. math:: y = m_0 + C_0 \big(m + \mathrm{diag}(e^{s})\,(I + N)\, x\big)

    with :math:`N` strictly lower triangular; :math:`m, s, N` are learned and start at 0, and
    :math:`m_0, C_0` stay as :meth:`start_at` sets them. Of a standard normal it makes any normal,
    so behind a stack of residual blocks it takes care of location, scale and correlation, and the
    blocks only bend. What is learned is measured in standard deviations of the start: a step of
    Adam is as long in a direction a thousand times narrower than another.

    Arguments:
        input_dim: the number of coordinates.
        cache_size: 1 to remember the last call, 0 for none.

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
        self.input_dim = check_positive_int(input_dim, "input_dim")
        # Parameters without a gradient, since Pyro's parameter store keeps no buffers: a guide
        # that came back from it with another start would be another guide.
        self.start_loc = nn.Parameter(torch.zeros(input_dim))
        self.start_scale_tril = nn.Parameter(torch.eye(input_dim))
        self.shift = nn.Parameter(torch.zeros(input_dim))
        self.log_scale = nn.Parameter(torch.zeros(input_dim))
        self.below = nn.Parameter(torch.zeros(input_dim, input_dim))

    @property
    def loc(self) -> Tensor:
        """Where 0 goes, shape ``(D,)``."""
        return self.start_loc.detach() + self.start_scale_tril.detach() @ self.shift

    @property
    def scale_tril(self) -> Tensor:
        """The lower-triangular matrix, shape ``(D, D)``."""
        eye = torch.eye(self.input_dim, dtype=self.below.dtype, device=self.below.device)
        relative = self.log_scale.exp()[:, None] * (self.below.tril(-1) + eye)
        return self.start_scale_tril.detach() @ relative

    @torch.no_grad()
    def start_at(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Start at the normal distribution with these parameters; what was learned is gone.

        Arguments:
            loc: shape ``(D,)``.
            scale_tril: lower triangular with a positive diagonal, shape ``(D, D)``.

        Raises:
            ArgumentError: another shape, not finite, not triangular or no positive diagonal.
        """
        size = self.input_dim
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

    def evaluate(self, x: Tensor) -> Evaluated:
        check_tensor(x, (self.input_dim,), self.shift, "x")
        return self.loc + x @ self.scale_tril.mT, lambda: self._logdet(x)

    def evaluate_inverse(self, y: Tensor) -> Evaluated:
        check_tensor(y, (self.input_dim,), self.shift, "y")
        rows = (y - self.loc).reshape(-1, self.input_dim)
        x = torch.linalg.solve_triangular(self.scale_tril, rows.mT, upper=False)
        return x.mT.reshape(y.shape), lambda: self._logdet(y)

    def pushing(self, x: Tensor, logdet: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
        upper = self.scale_tril.detach().mT

        def carry(w: Tensor) -> Tensor:
            rows = w.reshape(-1, self.input_dim)
            return torch.linalg.solve_triangular(upper, rows.mT, upper=True).mT.reshape(w.shape)

        return carry

    def with_cache(self, cache_size: int = 1) -> "TriangularAffine":
        """The same transform, parameters shared, with that cache."""
        if cache_size == self._cache_size:
            return self
        other = TriangularAffine(self.input_dim, cache_size=cache_size)
        other._parameters = self._parameters
        other.training = self.training
        return other

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}"

    def _logdet(self, x: Tensor) -> Tensor:
        start = self.start_scale_tril.detach().diagonal().log().sum()
        return (start + self.log_scale.sum()).expand(x.shape[:-1])

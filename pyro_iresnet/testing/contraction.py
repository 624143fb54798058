"""Checks of a contraction."""

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from ..contractions import Contraction
from .promises import ROUNDING, check_batch, close, require


def check_contraction(contraction: Contraction, x: Tensor, context: Tensor | None = None) -> None:
    """Check every promise of a contraction at the points ``x``: shapes, Jacobian, bound, purity.

    Arguments:
        contraction: the contraction to check; in float64, so that rounding does not hide a fault.
        x: some 50 points, shape ``(n, *event)``.
        context: shape ``(n, size)``, for a conditional contraction.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.
        ArgumentError, ArgumentTypeError: ``contraction`` is no contraction, or an incomplete one.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, testing
        >>> g, x = DenseContraction(2).double(), torch.randn(50, 2, dtype=torch.float64)
        >>> testing.check_contraction(g, x)
    """
    check_linearization(contraction, x, context)
    check_lipschitz_bound(contraction, x, context)
    check_purity(contraction, x, context)


def check_linearization(contraction: Contraction, x: Tensor, context: Tensor | None = None) -> None:
    """Check that ``linearize`` agrees with ``forward`` and with automatic differentiation.

    Arguments and errors as in :func:`check_contraction`.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, testing
        >>> g, x = DenseContraction(2).double(), torch.randn(50, 2, dtype=torch.float64)
        >>> testing.check_linearization(g, x)
    """
    check_batch(contraction, x)
    event_dim = contraction.event_dim
    linearization = contraction.linearize(x, context)
    value = contraction(x, context)
    close(linearization.value, value, "the value of linearize differs from that of forward")
    alone = contraction(x[:1], None if context is None else context[:1])
    close(alone, value[:1], "the value of a sample depends on the other samples")

    def one(point: Tensor, its_context: Tensor | None) -> Tensor:
        batch = None if its_context is None else its_context[None]
        return contraction(point[None], batch)[0]

    in_dims = (0, None if context is None else 0)
    size = linearization.event_size
    expected = vmap(jacrev(one), in_dims=in_dims)(x, context).reshape(len(x), size, size)
    differs = "differs from automatic differentiation of forward"
    close(linearization.as_matrix(), expected, f"the matrix of linearize {differs}")
    v = torch.randn(3, *x.shape, dtype=x.dtype, device=x.device)
    flat = v.flatten(v.dim() - event_dim)
    mv = (expected @ flat[..., None])[..., 0].reshape(v.shape)
    vm = (expected.mT @ flat[..., None])[..., 0].reshape(v.shape)
    close(linearization.mv(v), mv, f"the product J v of linearize {differs}")
    close(linearization.vm(v), vm, f"the product J^T v of linearize {differs}")
    trace = linearization.trace()
    if trace is not None:
        diagonal = expected.diagonal(dim1=-2, dim2=-1)
        close(trace, diagonal.sum(-1), f"the trace of linearize {differs}")
    index = torch.tensor([len(x) - 1, 0, 0], device=x.device)
    picked = linearization.select(index).mv(v[0][index])
    close(picked, mv[0][index], "the products of selected samples differ")


@torch.no_grad()
def check_lipschitz_bound(
    contraction: Contraction, x: Tensor, context: Tensor | None = None
) -> None:
    """Check that the proven bound is at most ``lipschitz``, and that no stretch exceeds the bound.

    Arguments and errors as in :func:`check_contraction`.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, testing
        >>> g, x = DenseContraction(2).double(), torch.randn(50, 2, dtype=torch.float64)
        >>> testing.check_lipschitz_bound(g, x)
    """
    check_batch(contraction, x)
    bound = float(contraction.lipschitz_bound())
    require(
        bound <= contraction.lipschitz + ROUNDING,
        f"the proven bound {bound} exceeds the promised {contraction.lipschitz}",
    )
    norms = torch.linalg.matrix_norm(contraction.linearize(x, context).as_matrix(), ord=2)
    require(
        float(norms.max()) <= bound + ROUNDING,
        f"a local stretch {float(norms.max())} exceeds the proven bound {bound}",
    )
    for scale in (1e-3, 1.0, 1e2):
        other = x + scale * torch.randn_like(x)
        first, second = (contraction(p, context).flatten(1) for p in (x, other))
        # Values far from 0, as under a large context, round more than near points are apart.
        hidden = 8 * torch.finfo(x.dtype).eps * (first.norm(dim=1) + second.norm(dim=1))
        apart = ((first - second).norm(dim=1) - hidden).clamp(min=0)
        stretch = float((apart / (x - other).flatten(1).norm(dim=1)).max())
        require(
            stretch <= bound + ROUNDING,
            f"a pair of points is stretched by {stretch}, the proven bound is {bound}",
        )


def check_purity(contraction: Contraction, x: Tensor, context: Tensor | None = None) -> None:
    """Check that calls change neither the contraction nor their inputs, in train and eval mode.

    Arguments and errors as in :func:`check_contraction`.

    Raises:
        AssertionError: a promise is broken; the message names it, with the numbers.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, testing
        >>> g, x = DenseContraction(2).double(), torch.randn(50, 2, dtype=torch.float64)
        >>> testing.check_purity(g, x)
    """
    check_batch(contraction, x)
    state = {name: value.clone() for name, value in contraction.state_dict().items()}
    inputs = {"x": x} if context is None else {"x": x, "context": context}
    before = {name: value.clone() for name, value in inputs.items()}
    modes = [(module, module.training) for module in contraction.modules()]
    try:
        first = contraction.train()(x, context)
        linearized = contraction.linearize(x, context).value
        contraction.lipschitz_bound()
        second = contraction.eval()(x, context)
    finally:
        for module, training in modes:
            module.training = training
    for name, value in inputs.items():
        require(torch.equal(value, before[name]), f"a call changed {name}")
    for name, value in contraction.state_dict().items():
        require(torch.equal(value, state[name]), f"a call changed {name}")
    require(torch.equal(first, second), "train and eval mode give different values")
    close(linearized, first, "the value of linearize differs from that of forward")

"""A penalty on the norms of weights, for those who prefer it to a bound."""

import torch
from torch import Tensor, nn

from .anatomy import contractions_of, modules_of
from .contractive import ConstrainedContraction, Norm, SingularValue
from .errors import ArgumentError, check_instance


def spectral_penalty(
    flow: object,
    norm: Norm = SingularValue(),  # noqa: B008  (frozen, so safe to share)
) -> Tensor:
    r"""The sum of squared spectral norms, :math:`\sum_i \lVert W_i \rVert_2^2`.

    (seed report Eq. 11.) Added to a loss with a factor it holds the norms of a network down,
    without any promise: only a bound makes a block invertible for certain. Of the contractions
    here it takes the weights before they are constrained, and so keeps them from growing out of
    reach of their gradients.

    Arguments:
        flow: any module, such as a network of your own; or a flow, stack or guide, of which the
            weights of the contractions count and nothing else.
        norm: how the norm of a weight is taken.

    Returns:
        A scalar, differentiable.

    Raises:
        ArgumentError: a layer whose norm is not known: other than linear ones and convolutions of
            images with stride 1, dilation 1 and one group.

    Example:
        >>> import torch
        >>> from pyro_iresnet import spectral_penalty
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = torch.nn.init.eye_(layer.weight)
        >>> round(spectral_penalty(torch.nn.Sequential(layer, torch.nn.Tanh(), layer)).item(), 4)
        1.0
    """
    check_instance(norm, Norm, "norm", "SingularValue()")
    weights: list[Tensor] = []
    contractions = contractions_of(flow)
    for root in contractions or modules_of(flow)[:1]:
        constrained = [m for m in root.modules() if isinstance(m, ConstrainedContraction)]
        weights += [w.weight for c in constrained for w in c.free_weights()]
        inside = {id(m) for c in constrained for m in c.modules()}
        weights += [w for m in root.modules() if id(m) not in inside for w in _weights_of(m)]
    if not weights:
        raise ArgumentError("Expected flow to have weights; found none.")
    return torch.stack([_size(norm, w) for w in weights]).square().sum()


def _weights_of(module: nn.Module) -> list[Tensor]:
    """The weights that are a module's own, or raise where their norm is not known."""
    own: list[Tensor] = [p for p in module.parameters(recurse=False) if p.dim() > 1]
    if not own or isinstance(module, nn.Linear):
        return own
    plain = isinstance(module, nn.Conv2d) and (
        (module.stride, module.dilation, module.groups) == ((1, 1), (1, 1), 1)
    )
    if not plain:
        raise ArgumentError(
            "Expected linear layers, or convolutions of images with stride 1, dilation 1 and one "
            f"group; got {module}, whose norm is not known."
        )
    return own


def _size(norm: Norm, weight: Tensor) -> Tensor:
    return norm.sizes(weight[None]).amax()

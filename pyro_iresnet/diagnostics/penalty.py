"""A penalty on the norms of weights, as an alternative to a bound."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._modules import contractions_of, modules_of, outermost
from ..contractions import LayeredContraction
from ..errors import ArgumentError, check_instance
from ..norms import Norm, SingularValue


def spectral_penalty(
    flow: object,
    norm: Norm = SingularValue(),  # noqa: B008  (frozen, so safe to share)
) -> Tensor:
    r"""Sum squared spectral norms, :math:`\sum_i \lVert W_i \rVert_2^2`, differentiable.

    Added to a loss with a factor, the penalty holds the norms of a network down, without any
    promise: only a bound makes a block invertible for certain. The penalty takes the raw weights of
    this package's contractions, before they are constrained, and so keeps the weights from growing
    out of reach of their gradients.

    Arguments:
        flow: any module, such as a network of your own; or a flow, stack or guide, of which only
            the weights of the contractions count.
        norm: takes the norm of a weight.

    Raises:
        ArgumentError: the norm of a layer is not known: the layer is neither linear nor a
            convolution of images with stride 1, dilation 1 and one group.

    Example:
        >>> import torch
        >>> from pyro_iresnet.diagnostics import spectral_penalty
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = torch.nn.init.eye_(layer.weight)
        >>> round(spectral_penalty(torch.nn.Sequential(layer, torch.nn.Tanh(), layer)).item(), 4)
        1.0
    """
    check_instance(norm, Norm, "norm", "SingularValue()")
    weights: list[Tensor] = []
    # Modules whose weights are counted: a layer may stand in several roots.
    seen: set[int] = set()
    contractions = contractions_of(flow)
    for root in contractions or outermost(modules_of(flow)):
        fresh = [m for m in root.modules() if id(m) not in seen]
        constrained = [m for m in fresh if isinstance(m, LayeredContraction)]
        weights += [w.weight for c in constrained for w in c.raw_weights()]
        inside = {id(m) for c in constrained for m in c.modules()}
        # The parametrization of a weight counts as this weight, not once more.
        layers = [m for m in fresh if parametrize.is_parametrized(m)]
        inside |= {
            id(m) for layer in layers for m in layer.get_submodule("parametrizations").modules()
        }
        weights += [w for m in fresh if id(m) not in inside for w in _weights_of(m)]
        seen |= inside | {id(m) for m in fresh}
    if not weights:
        raise ArgumentError("Expected flow to have weights; found none.")
    return torch.stack([_size(norm, w) for w in weights]).square().sum()


def _weights_of(module: nn.Module) -> list[Tensor]:
    """Return the weights of the module itself, or raise if their norm is not known."""
    if isinstance(module, nn.Linear):
        return [module.weight]
    if isinstance(module, nn.Conv2d):
        settings = module.stride, module.dilation, module.groups
        if settings == ((1, 1), (1, 1), 1) and module.padding_mode in ("zeros", "circular"):
            return [module.weight]
    elif all(p.dim() < 2 for p in module.parameters(recurse=False)):
        return []
    raise ArgumentError(
        "Expected linear layers, or convolutions of images with stride 1, dilation 1, one group "
        f"and padding by zeros or circular; got {module}, whose norm is not known."
    )


def _size(norm: Norm, weight: Tensor) -> Tensor:
    if weight.dim() == 2:
        return norm(weight)
    turned = weight.transpose(0, 1) if weight.shape[0] > weight.shape[1] else weight
    return norm.sizes(turned[None])[0]

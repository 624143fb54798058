"""The log-density of a Pyro model as a function of a guide's latent vector."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide import AutoContinuous
from pyro.poutine.block_messenger import BlockMessenger
from torch import Tensor, nn
from torch.distributions import biject_to

from ...._modules import evaluating

CONTAINERS = (dict, list, tuple)
# Longer containers are data.
LONG = 1000


class LogJoint:
    r"""The function ``z -> log p(x, z)`` on the unconstrained scale of a guide.

    It includes the map T to the constrained scale, as the ELBO does:
    :math:`\log p(x, T(z)) + \log\lvert\det T'(z)\rvert`. The guide has seen the model, and gives
    the sites and their packing. The model comes without the guide's own initialisation, but with
    its arguments.
    """

    def __init__(
        self,
        guide: AutoContinuous,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.guide, self.model, self.args, self.kwargs = guide, model, args, kwargs
        # A search is no training: a BatchNorm must not count it, a dropout must not draw.
        self.modules = modules_behind(model)

    def __call__(self, z: Tensor) -> Tensor:
        """Return the log-density at ``z`` of shape ``(D,)``, a scalar."""
        values, total = {}, z.new_zeros(())
        pairs: Any = self.guide._unpack_latent(z)
        for site, unconstrained in pairs:
            transform = biject_to(site["fn"].support)
            value = transform(unconstrained)
            logdet: Any = transform.log_abs_det_jacobian(unconstrained, value)
            logdet = sum_rightmost(logdet, logdet.dim() - value.dim() + site["fn"].event_dim)
            values[site["name"]] = value
            total = total + logdet.sum()
        with poutine.block(), _without_validation(), evaluating(self.modules):
            conditioned = poutine.condition(self.model, data=values)
            trace = poutine.trace(conditioned).get_trace(*self.args, **self.kwargs)
            return total + trace.log_prob_sum()

    @torch.no_grad()
    def is_deterministic(self, z: Tensor) -> bool:
        """Return True if a few calls at one point near ``z`` give the same value.

        The values differ if the model draws something unknown to the guide (data in a subsampling
        plate, hidden sites). The answer is False too if the model fails, and if a
        ``poutine.block`` stands around the model: hidden observations are missing in the density.
        """
        if any(isinstance(thing, BlockMessenger) for thing in things_behind(self.model)):
            return False
        # At a symmetric point a draw of the model may make no difference.
        z = z + 0.01 * torch.randn_like(z)
        try:
            first, *others = (self(z) for _ in range(5))
        except Exception:
            return False
        return all(torch.equal(first.nan_to_num(), other.nan_to_num()) for other in others)


@contextmanager
def _without_validation() -> Iterator[None]:
    """Switch validation off: a search that meets invalid parameters gets NaN, and no error."""
    of_torch = torch.distributions.Distribution._validate_args
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        # Pyro restores its own flag only, so torch's flag is restored here.
        torch.distributions.Distribution.set_default_validate_args(of_torch)


def modules_behind(function: object) -> list[nn.Module]:
    """List the modules that a callable leads to, with those in attributes and containers."""
    near = things_behind(function)
    held = [value for thing in near for value in _held(thing)]
    inner = [value for each in held if isinstance(each, CONTAINERS) for value in _held(each)]
    tops = [thing for thing in (*near, *held, *inner) if isinstance(thing, nn.Module)]
    return list({id(m): m for top in tops for m in top.modules()}.values())


def _held(thing: object) -> list[Any]:
    """List the entries of a container, unless they are data, or the attributes of an object."""
    if isinstance(thing, nn.Module | type):
        return []
    if not isinstance(thing, CONTAINERS):
        # Not getattr, which may call code of the user's.
        thing = vars(thing) if "__dict__" in dir(type(thing)) else {}
    held = thing.values() if isinstance(thing, dict) else thing
    return list(held) if len(held) <= LONG else []


def things_behind(function: object) -> list[object]:
    """List the objects that a callable leads to.

    A callable leads to itself, to the object of a method, and to more by ``functools.partial``, by
    a decorator, by its closure, by its defaults, or by a global name, but not through a container
    or an attribute.
    """
    found: dict[int, object] = {}
    waiting = [function]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in found:
            found[id(thing)] = thing
            waiting += _leads(thing)
    return list(found.values())


def _leads(thing: object) -> list[object]:
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if not isinstance(thing, FunctionType):
        return []
    cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_full(cell)]
    given = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    space = thing.__globals__
    near = [space[name] for name in thing.__code__.co_names if name in space]
    wrapped = getattr(thing, "__wrapped__", None)
    return [*cells, *given, wrapped, *(v for v in near if _is_users(v))]


def _is_full(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_users(value: object) -> bool:
    """Return True for data, modules, and functions outside the libraries, which lead far."""
    if isinstance(value, ModuleType | type):
        return False
    module = getattr(value, "__module__", None) or ""
    return isinstance(value, nn.Module) or not module.startswith(("torch", "pyro.", "numpy"))

"""A look at a model: the latent sites that a guide can stand for, and changes of the sites."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_feasible
from pyro.poutine.runtime import am_i_wrapped
from pyro.poutine.util import site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.distributions import biject_to

from ...._modules import evaluating
from ...._torch import in_torch_func, is_compiling, is_tracing
from ....errors import ArgumentError
from .log_joint import modules_behind
from .signature import signature, signature_behind

REMEDY = "Pass the arguments that the guide was made with, or make a new guide."


@dataclass
class Look:
    """What a guide saw when it last looked at the sites of its model.

    Arguments:
        seen: the signature of the arguments and of the data behind the model, or None if the next
            call has to look again.
        without_arguments: True if the model of the guide takes no arguments.
    """

    seen: object = None
    without_arguments: bool = False

    @classmethod
    def first(
        cls,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sites: dict[str, Any],
    ) -> "Look":
        """Check the sites that a guide is made for, as :func:`check_sites` does."""
        masked = check_sites(sites)
        return cls(None if masked else _seen(model, args, kwargs), not (args or kwargs))

    def again(
        self,
        model: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sites: dict[str, Any],
        like: Tensor,
    ) -> None:
        """Run the model, unless all is as before, and raise if its sites have changed.

        Called by nobody but a user, and without arguments, a guide draws from the posterior that
        it knows: the model may not run without arguments. ``like`` has the dtype and device of the
        guide.
        """
        if model is None or is_compiling() or is_tracing() or in_torch_func():
            return
        named = bool(args or kwargs or self.without_arguments)
        # Inside an ELBO the model runs with the same arguments.
        if not named and not (am_i_wrapped() and _runs_without_arguments(model)):
            return
        seen = _seen(model, args, kwargs)
        if seen == self.seen:
            return
        at = {name: site["value"].detach().to(like) for name, site in sites.items()}
        trace = run(model, args, kwargs, at)
        predicting = seen[0] or not named
        masked = not predicting and check_sites(latent_sites(trace))
        check_same(sites, trace, predicting)
        self.seen = None if masked else seen

    def __getstate__(self) -> dict[str, Any]:
        # A signature may hold types that do not pickle.
        return {"seen": None, "without_arguments": self.without_arguments}


def _seen(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, object, object]:
    # Predictive masks all sites: a prediction needs no density.
    return poutine.get_mask() is False, signature((args, kwargs)), signature_behind(model)


def _runs_without_arguments(model: Callable[..., Any]) -> bool:
    try:
        inspect.signature(model).bind()
    except (TypeError, ValueError):
        return False
    return True


def masks(site: Any) -> list[Any]:
    """List the masks of a site: that of its handlers, and those inside its distribution.

    A distribution with ``.mask(False)`` is Pyro's flat prior, and counts as unmasked.
    """
    found, fn = [site["mask"]], site["fn"]
    while fn is not None:
        mask = getattr(fn, "_mask", None)
        found += [mask] if isinstance(mask, Tensor) else []
        fn = getattr(fn, "base_dist", None)
    return [mask for mask in found if mask is not None]


def latent_sites(trace: Any) -> dict[str, Any]:
    """Return the latent sites of a trace by name, without the indices of plates."""
    sites = trace.iter_stochastic_nodes()
    return {name: site for name, site in sites if not site_is_subsample(site)}


def check_sites(sites: dict[str, Any]) -> bool:
    """Raise for a latent site that no guide of fixed coordinates suits; True if one has a mask.

    A masked entry has a density in the guide and none in the model, so that the ELBO has no bound.
    """
    masked = False
    for name, site in sites.items():
        for mask in masks(site):
            masked = True
            if not bool(torch.as_tensor(mask).all()):
                raise ArgumentError(
                    f"Expected latent sites without a mask; {name!r} is masked, so that the ELBO "
                    "would pass the evidence. Draw only the missing entries (a site of their own, "
                    "such as x[~seen]), leave the site out where it has no density, or hide it "
                    f"from the guide: poutine.block(model, hide=[{name!r}])."
                )
        for frame in site["cond_indep_stack"]:
            if frame.full_size not in (None, frame.size):
                raise ArgumentError(
                    f"Expected latent sites in plates at full size; {name!r} is in the plate "
                    f"{frame.name!r}, which takes {frame.size} of {frame.full_size} rows, and the "
                    "guide would have coordinates for these rows only. Take the full plate, "
                    "without subsample_size, or write an amortised guide with "
                    "conditional_iresnet; a plate of observed sites only may subsample."
                )
    return masked


def run(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], at: dict[str, Tensor]
) -> Any:
    """Run a model once, at given values of its latent sites, and return the trace.

    A site whose shape has changed takes another value. Gradients, buffers and random numbers stay
    as they are.
    """

    def start(site: Any) -> Any:
        value = at.get(site["name"])
        fits = value is not None and value.shape == site["fn"].shape()
        return value if fits else init_to_feasible(site)

    # Only these modules, since a model may have other sites in eval mode.
    counting = [m for m in modules_behind(model) if m._buffers and not m._modules]
    devices = {v.device for v in at.values()}
    with torch.no_grad(), poutine.block(), evaluating(counting), keeping_seeds(devices):
        return poutine.trace(InitMessenger(start)(model)).get_trace(*args, **kwargs)


@contextmanager
def keeping_seeds(devices: set[torch.device]) -> Iterator[None]:
    """Leave the random numbers of torch, NumPy and Python as they are before."""
    state = get_rng_state()
    try:
        with torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
            yield
    finally:
        set_rng_state(state)


def check_same(before: dict[str, Any], trace: Any, predicting: bool) -> None:
    """Raise unless a trace has the latent sites of a guide, with plates, shapes and supports.

    A model that predicts may draw sites that it had observed, and leave others out.
    """
    now = latent_sites(trace)
    for name in [*before.keys() - now.keys(), *now.keys() - before.keys()]:
        if not predicting:
            _raise_changed(name, name in before, trace)
    for name in before.keys() & now.keys():
        _check_site(name, before[name], now[name])


def _raise_changed(name: str, was_latent: bool, trace: Any) -> NoReturn:
    latent, known = "latent", name in trace.nodes
    here = "observed" if known else "no site"
    was, found = (latent, here) if was_latent else ("observed or no site", latent)
    predict = "" if was_latent else " To predict, use Predictive(model, guide=guide)."
    raise ArgumentError(
        f"Expected the latent sites that the guide was made for; {name!r} was {was} then, and is "
        f"{found} with these arguments. {REMEDY}{predict}"
    )


def _check_site(name: str, before: Any, now: Any) -> None:
    frames = [{f.name: f for f in site["cond_indep_stack"]} for site in (before, now)]
    for plate in sorted({*frames[0], *frames[1]}):
        sizes = [plate_size(found.get(plate)) for found in frames]
        if sizes[0] != sizes[1]:
            raise ArgumentError(
                f"Expected {name!r} in the plates that the guide was made for: the plate {plate!r} "
                f"had {sizes[0]} rows then, and has {sizes[1]} with these arguments. {REMEDY}"
            )
    shapes = [tuple(site["value"].shape) for site in (before, now)]
    if shapes[0] != shapes[1] or before["fn"].event_dim != now["fn"].event_dim:
        raise ArgumentError(
            f"Expected {name!r} of shape {shapes[0]} with {before['fn'].event_dim} event "
            f"dimensions, as when the guide was made; got {shapes[1]} with "
            f"{now['fn'].event_dim}. {REMEDY}"
        )
    supports = [site["fn"].support for site in (before, now)]
    if supports[0] is not supports[1] and not _same_map(before, now):
        raise ArgumentError(
            f"Expected {name!r} with the support {supports[0]}, as when the guide was made; got "
            f"{supports[1]}. {REMEDY}"
        )


def plate_size(frame: Any) -> object:
    """Return the number of rows of a plate, those left out by a subsample too; "no" for None."""
    return "no" if frame is None else frame.full_size or frame.size


def _same_map(*sites: Any) -> bool:
    """Return True if the supports of two sites have the same map from the unconstrained scale."""
    images = []
    for site in sites:
        value, to_support = site["value"], biject_to(site["fn"].support)
        z = to_support.inv(value)
        z = torch.linspace(-2, 2, z.numel(), dtype=z.dtype, device=z.device).reshape(z.shape)
        images.append(to_support(z).cpu().double())
    return images[0].shape == images[1].shape and torch.allclose(images[0], images[1])

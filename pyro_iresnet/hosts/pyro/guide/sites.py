"""The latent sites that a guide of fixed coordinates can stand for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from ....errors import ArgumentError


def latent_sites(trace: Any) -> dict[str, Any]:
    """Return the latent sites of a trace by name, without the indices of plates."""
    sites = trace.iter_stochastic_nodes()
    return {name: site for name, site in sites if not site_is_subsample(site)}


def check_sites(sites: dict[str, Any]) -> None:
    """Raise for a latent site that no guide of fixed coordinates suits.

    A masked entry has a density in the guide and none in the model, so that the ELBO has no bound.
    """
    for name, site in sites.items():
        for mask in masks(site):
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


def plate_size(frame: Any) -> object:
    """Return the number of rows of a plate, those left out by a subsample too; "no" for None."""
    return "no" if frame is None else frame.full_size or frame.size


@contextmanager
def keeping_seeds(devices: set[torch.device]) -> Iterator[None]:
    """Leave the random numbers of torch, NumPy and Python as they are before."""
    state = get_rng_state()
    try:
        with torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
            yield
    finally:
        set_rng_state(state)

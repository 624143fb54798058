"""The sites of a model and a guide: checks, kinds, values and log-densities."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.poutine.util import site_is_factor
from torch import Tensor

from ..errors import ArgumentError
from ..hosts.pyro.guide.sites import masks, plate_size


def check_match(model: Any, guide: Any) -> None:
    """Raise unless the guide draws the latent sites of the model; both are traces."""
    swapped = " Are guide and model swapped? The guide comes first."
    observed = by_kind(guide)[2]
    if observed:
        raise ArgumentError(
            f"Expected a guide that observes nothing; got {listed(observed)}.{swapped}"
        )
    latent, drawn = by_kind(model)[0], by_kind(guide)[0]
    auxiliary = {name for name, site in drawn.items() if site["infer"].get("is_auxiliary")}
    missing, extra = latent.keys() - drawn.keys(), drawn.keys() - latent.keys() - auxiliary
    if missing:
        inside = any(latent[name]["infer"].get("is_auxiliary") for name in missing)
        raise ArgumentError(
            f"Expected a guide that draws every latent site of the model; it lacks "
            f"{listed(missing)}. Add it to the guide, or sum it out of the model if it was "
            f"enumerated.{swapped if inside else ''}"
        )
    if extra:
        raise ArgumentError(
            f"Expected a guide that draws latent sites of the model only; it also draws "
            f"{listed(extra)}. Remove it, or mark a step to a latent site with "
            "infer={'is_auxiliary': True}."
        )
    if not latent:
        raise ArgumentError("Expected a model with latent sites; it has none to draw.")


def check_full(frames: Any) -> None:
    """Raise if a plate takes only a part of its rows."""
    for frame in frames:
        if frame.full_size not in (None, frame.size):
            raise ArgumentError(
                f"Expected plates at full size; {frame.name!r} takes {frame.size} of "
                f"{frame.full_size}. A weight from a part of the data is noisy beyond repair: pass "
                "all data, without subsample_size."
            )


def check_unscaled(model: Any, guide: Any) -> None:
    """Raise if the density of a latent site is scaled."""
    latent = by_kind(model)[0]
    for where, sites in (("guide", samples(guide)), ("model", latent)):
        for name, site in sites.items():
            scale = torch.as_tensor(site["scale"])
            if bool((scale != 1).any()):
                raise ArgumentError(
                    f"Expected latent sites with their own density; {name!r} of the {where} is "
                    f"scaled by {float(scale.flatten()[0]):.3g}. Pass model and guide without "
                    "poutine.scale: a scaled density has no importance weights."
                )


def check_alike(model: Any, guide: Any) -> None:
    """Raise unless the plates and masks of the latent sites are those of the guide."""
    for name, site in by_kind(model)[0].items():
        other = guide.nodes.get(name)
        if other is None:
            continue
        sizes = {frame.name: plate_size(frame) for frame in other["cond_indep_stack"]}
        for frame in site["cond_indep_stack"]:
            size = plate_size(frame)
            if sizes.get(frame.name, size) != size:
                raise ArgumentError(
                    f"Expected plates of one size in model and guide; the plate {frame.name!r} of "
                    f"{name!r} has {size} rows in the model and {sizes[frame.name]} in the guide. "
                    "Pass the arguments that the guide was made with, or make a new guide."
                )
        found = torch.broadcast_tensors(_mask(site), _mask(other))
        if not torch.equal(*found):
            dropped = [int((~mask).sum()) for mask in found]
            raise ArgumentError(
                f"Expected the same mask for {name!r} in model and guide; the model masks "
                f"{dropped[0]} of its {found[0].numel()} entries and the guide {dropped[1]}, so "
                "that the weights would be wrong. Mask the site in both, or draw only the entries "
                "that have a density."
            )


def _mask(site: Any) -> Tensor:
    """Return the mask of a site, in the shape of its batch."""
    found = torch.ones(site["fn"].batch_shape, dtype=torch.bool)
    for mask in masks(site):
        found = found & torch.as_tensor(mask).cpu()
    return found


def unvectorized(seen: str) -> ArgumentError:
    """Make the error for a model or guide that runs on one draw but not on many."""
    return ArgumentError(
        f"Expected model and guide to run on many draws at once, in a plate to the left of their "
        f"own; they {seen}. Index and sum from the right (z[..., 0], z.sum(-1)), draw nothing "
        "beside Pyro's sites, or pass batch_size=1."
    )


def samples(trace: Any) -> dict[str, Any]:
    """Return the sample sites of a trace."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def by_kind(trace: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the latent, the deterministic and the observed sites; factors are left out."""
    kinds: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] = ({}, {}, {})
    for name, site in samples(trace).items():
        if not site_is_factor(site):
            kind = 0 if not site["is_observed"] else 1 if _is_point(site) else 2
            kinds[kind][name] = site
    return kinds


def _is_point(site: Any) -> bool:
    """Return True if the site is from ``pyro.deterministic`` or a reparametrisation."""
    fn = site["fn"]
    while isinstance(fn, dist.MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


class LogProb(NamedTuple):
    """The log-density of draws, float64, shape ``(n,)``: the sum ``value`` over all sites.

    ``size`` is the root of the sum of the squared terms; the rounding error of ``value`` is
    proportional to ``size``.
    """

    value: Tensor
    size: Tensor


def log_prob(trace: Any, n: int | None) -> LogProb:
    """Return the log-density of each draw, over all sites."""
    terms = [site["log_prob"].cpu().double() for site in samples(trace).values()]
    flat = [t.reshape(n or 1, -1) for t in terms] or [torch.zeros(n or 1, 1).double()]
    total = torch.stack([t.sum(1) for t in flat]).sum(0)
    return LogProb(total, torch.stack([t.square().sum(1) for t in flat]).sum(0).sqrt())


def site_value(site: Any) -> Tensor:
    """Return the value of a site in one run; data take the shape of their distribution."""
    value = torch.as_tensor(site["value"])
    data = site["is_observed"] and not _is_point(site)
    return value.expand(site["fn"].shape()) if data else value


def site_values(
    trace: Any, sites: dict[str, Any], n: int | None, key: str = "value"
) -> dict[str, Tensor]:
    """Return the values of sites in draws, shape ``(n, *site)``; ``sites`` come from one run."""
    found = {}
    for name, site in sites.items():
        shape = (site_value(site) if key == "value" else site[key]).shape
        value = torch.as_tensor(trace.nodes[name][key])
        if value.shape == shape:
            # The value of one run, or the same value in every draw.
            found[name] = value.expand(n or 1, *shape)
        elif n is not None and value.shape[:1] == (n,) and value.numel() == n * shape.numel():
            found[name] = value.reshape(n, *shape)
        else:
            raise unvectorized(
                f"gave {name!r} the shape {tuple(value.shape)}, and {tuple(shape)} in one draw"
            )
    return found


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the batches, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def event_dim(site: Any) -> int:
    """Return the number of dimensions on the right that belong to no plate."""
    # A deterministic site without an event_dim is all event, even in a plate.
    whole = site["infer"].get("_deterministic") and site["fn"].event_dim == site["value"].dim()
    return 0 if whole else site["fn"].event_dim


def listed(names: Any) -> str:
    """List the names, sorted and quoted, for an error."""
    return ", ".join(map(repr, sorted(names)))

"""Draws from a guide in the format of ArviZ."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import arviz
import pyro
import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, check_flag, check_instance
from .importance import PSIS, warn, weigh
from .particles import Particles
from .sites import event_dim, listed, site_value


def guide_to_inference_data(
    guide: Callable[..., Any],
    model: Callable[..., Any],
    *args: Any,
    num_samples: int | None = None,
    result: PSIS | None = None,
    resample: bool = False,
    posterior_predictive: bool = True,
    log_likelihood: bool = True,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    max_plate_nesting: int | None = None,
    batch_size: int | None = None,
    **kwargs: Any,
) -> arviz.InferenceData:
    """Return draws from a guide as one chain, for the plots and tables of ArviZ.

    Groups: ``posterior`` (latent and deterministic sites), ``sample_stats`` (``log_weight``, ``lp``
    = log p(x, z), ``log_q``), ``posterior_predictive``, ``observed_data`` and ``log_likelihood``;
    the last three only if the model has observed sites. Dimensions are named after the plates.
    ``k_hat`` and ``ess`` of the draws are attributes.

    Arguments:
        guide, model, *args, **kwargs, max_plate_nesting, batch_size: as in :func:`psis`.
        num_samples: the number of draws; by default 1000, or as many as ``result`` has.
        result: a result of :func:`psis` for the same guide and model, whose draws to use.
        resample: if True, resample the draws by their smoothed weights. They then follow the
            posterior, as far as k-hat allows, and not the guide.
        posterior_predictive: if True, draw the observed sites anew.
        log_likelihood: if True, store the log-likelihood of each observation for ``arviz.loo``,
            which needs draws from the posterior: set ``resample``.
        coords: labels, by dimension.
        dims: names of the dimensions, by site, instead of the names of the plates.

    Raises:
        ArgumentError, ArgumentTypeError: as :func:`psis`; or ``num_samples`` is set with a
            ``result`` that is not resampled, or ``result`` has other sites.

    Warns:
        KHatWarning: as :func:`psis`, unless ``result`` is given.

    Example:
        >>> import arviz, pyro, torch, pyro.distributions as dist
        >>> def model(y):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("row", len(y)):
        ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("z", dist.Normal(y.sum() / (1 + len(y)), 0.5))
        >>> data = guide_to_inference_data(guide, model, torch.ones(3))
        >>> dict(data.log_likelihood.sizes)
        {'chain': 1, 'draw': 1000, 'row': 3}
    """
    flags = {
        "resample": resample,
        "posterior_predictive": posterior_predictive,
        "log_likelihood": log_likelihood,
    }
    for name, flag in flags.items():
        check_flag(flag, name)
    for name, mapping in (("coords", coords), ("dims", dims)):
        if mapping is not None and not isinstance(mapping, Mapping):
            raise ArgumentTypeError(
                f"Expected {name} to be a dictionary or None; got {type(mapping).__name__}."
            )
    pair = Particles(guide, model, args, kwargs, max_plate_nesting, batch_size)
    reserved = {"chain", "draw"} & {*pair.latent, *pair.deterministic, *pair.observed}
    if reserved:
        raise ArgumentError(
            f"Expected no site named {listed(reserved)}, which ArviZ keeps for itself. Rename it."
        )
    given = result is not None
    if result is None:
        result = weigh(pair, 1000 if num_samples is None else num_samples)
        warn(result)
    check_instance(result, PSIS, "result", "psis(guide, model)")
    if given and num_samples is not None and not resample:
        raise ArgumentError(
            f"Expected num_samples={num_samples} only with resample=True, as result has its draws."
        )
    if result.draws.keys() != pair.latent.keys():
        raise ArgumentError(
            f"Expected result with the latent sites of the model, {listed(pair.latent)}; got "
            f"{listed(result.draws)}. Pass what psis returned for this model."
        )
    shapes = {name: tuple(site_value(site).shape) for name, site in pair.latent.items()}
    if wrong := [n for n, v in result.draws.items() if tuple(v.shape[1:]) != shapes[n]]:
        raise ArgumentError(
            f"Expected result with {wrong[0]!r} of shape {shapes[wrong[0]]}; got "
            f"{tuple(result.draws[wrong[0]].shape[1:])}. Pass what psis returned on the same data."
        )
    size = len(result.log_joint)
    wanted = size if num_samples is None else num_samples
    index = result.indices(wanted) if resample else torch.arange(size)
    draws = {name: value[index.to(value.device)] for name, value in result.draws.items()}
    deterministic, likelihood = pair.evaluate(draws)
    stats = {"log_weight": result.log_weights, "lp": result.log_joint, "log_q": result.log_guide}
    groups: dict[str, Any] = {
        "posterior": _chain({**draws, **deterministic}),
        "sample_stats": _chain({name: value[index] for name, value in stats.items()}),
    }
    if pair.observed:
        data = {name: site_value(site) for name, site in pair.observed.items()}
        groups["observed_data"] = {
            name: value.detach().cpu().numpy() for name, value in data.items()
        }
        if log_likelihood:
            groups["log_likelihood"] = _chain(likelihood)
        if posterior_predictive:
            groups["posterior_predictive"] = _chain(pair.predict(draws))
    attrs = {
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "k_hat": result.k_hat,
        "ess": result.ess,
        "resampled": int(resample),
    }
    sites = {**pair.latent, **pair.deterministic, **pair.observed}
    named = {name: _dims(site) for name, site in sites.items()}
    return arviz.from_dict(
        **groups,
        coords=None if coords is None else dict(coords),
        dims={**named, **({} if dims is None else dims)},
        attrs=attrs,
        posterior_attrs=attrs,
        sample_stats_attrs=attrs,
    )


def _dims(site: Any) -> list[str | None]:
    """Name each dimension of a site by its plate, or None."""
    shape = site_value(site).shape
    dims: list[str | None] = [None] * len(shape)
    for frame in site["cond_indep_stack"]:
        axis = len(shape) - event_dim(site) + frame.dim if frame.vectorized else -1
        # ArviZ reserves "chain" and "draw".
        if axis >= 0 and shape[axis] == frame.size and frame.name not in ("chain", "draw"):
            dims[axis] = frame.name
    return dims


def _chain(values: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.detach().cpu().numpy()[None] for name, value in values.items()}

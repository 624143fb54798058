"""Guides of Pyro that the benchmarks compare with."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pyro.distributions.transforms import affine_autoregressive, spline_autoregressive
from pyro.infer.autoguide import AutoGuide, AutoIAFNormal, AutoNormalizingFlow

from pyro_iresnet.hosts.pyro import Stack

MakeGuide = Callable[[Callable[..., Any]], AutoGuide]

IAF, SPLINES = "AutoIAFNormal (3)", "spline autoregressive (2) + affine"


def autoregressive_guides() -> dict[str, MakeGuide]:
    """Return the makers of Pyro's guides of affine and of spline maps, by name."""
    return {
        IAF: partial(AutoIAFNormal, hidden_dim=[64], num_transforms=3),
        SPLINES: partial(AutoNormalizingFlow, init_transform_fn=_splines),
    }


def _splines(dim: int) -> Stack:
    splines = [spline_autoregressive(dim, hidden_dims=[64], bound=4.0) for _ in range(2)]
    return Stack([*splines, affine_autoregressive(dim, hidden_dims=[64])])

"""Densities in the plane: the eight toy data of FFJORD, with their exact log-densities.

Points are drawn afresh, angles uniformly rather than in equal steps. Each density is a mixture
over a curve of a known kernel, or a change of variables, so its entropy is a mean of
``log_prob`` over draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_iresnet.demo.checkerboard import checkerboard

CHUNK = 4000
# Closer together than the noise of any curve is wide.
KNOTS = 1000


@dataclass(frozen=True)
class Toy:
    """Density in the plane.

    Arguments:
        name: the name in the report.
        sample: draws a number of points, shape ``(count, 2)``.
        log_density: the log-density at points of shape ``(n, 2)``, in double precision.
    """

    name: str
    sample: Callable[[int], Tensor]
    log_density: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density in double precision, shape ``(n,)``."""
        return torch.cat([self.log_density(part) for part in x.double().split(CHUNK)])


def toys() -> dict[str, Toy]:
    """Return the densities by name."""
    found = (
        Toy("8 gaussians", eight_gaussians, _eight_gaussians),
        Toy("pinwheel", pinwheel, _pinwheel),
        Toy("2 spirals", two_spirals, _two_spirals),
        Toy("checkerboard", checkerboard, _checkerboard),
        Toy("moons", moons, _moons),
        Toy("circles", lambda n: _ringed(n, CIRCLES), lambda x: _rings(x, CIRCLES)),
        Toy("rings", lambda n: _ringed(n, RINGS), lambda x: _rings(x, RINGS)),
        Toy("swiss roll", swiss_roll, _swiss_roll),
    )
    return {toy.name: toy for toy in found}


def _checkerboard(x: Tensor) -> Tensor:
    column, row = (x / 2).floor().unbind(1)
    inside = (x.abs() < 4).all(1) & ((column + row) % 2 == 0)
    return torch.where(inside, -math.log(32), -math.inf)


def _centres() -> Tensor:
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return torch.stack([angle.cos(), angle.sin()], 1) * 4 / 1.414


def eight_gaussians(count: int) -> Tensor:
    """Eight normal distributions on a circle."""
    centre = _centres()[torch.randint(8, (count,))].to(torch.get_default_dtype())
    return centre + 0.5 / 1.414 * torch.randn(count, 2)


def _eight_gaussians(x: Tensor) -> Tensor:
    return _smoothed(x, _centres(), 0.5 / 1.414)


# Radii, and the deviation of the noise.
CIRCLES = (3.0, 1.5), 0.24
RINGS = (3.0, 2.25, 1.5, 0.75), 0.08


def _ringed(count: int, rings: tuple[tuple[float, ...], float]) -> Tensor:
    radii, noise = rings
    radius = torch.tensor(radii)[torch.randint(len(radii), (count,))]
    angle = 2 * math.pi * torch.rand(count)
    on = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return on + noise * torch.randn(count, 2)


def _rings(x: Tensor, rings: tuple[tuple[float, ...], float]) -> Tensor:
    """A circle with normal noise: a von Mises integral over the angle."""
    radii, noise = rings
    distance = x.norm(dim=1, keepdim=True)
    radius = torch.tensor(radii, dtype=torch.float64)
    # i0e is I0 without its growth, which goes into the exponent.
    bessel = torch.special.i0e(distance * radius / noise**2).log()
    parts = bessel - (distance - radius).square() / (2 * noise**2)
    return parts.logsumexp(1) - math.log(len(radii) * 2 * math.pi * noise**2)


def _arcs(angle: Tensor) -> Tensor:
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    return 2 * torch.stack([upper, lower]) + torch.tensor([-1.0, -0.2]).to(angle)


def moons(count: int) -> Tensor:
    """Two half circles, one turned over into the other, with noise."""
    both = _arcs(math.pi * torch.rand(count))
    which = torch.randint(2, (count,))
    return both[which, torch.arange(count)] + 0.2 * torch.randn(count, 2)


def _moons(x: Tensor) -> Tensor:
    return _smoothed(x, _arcs(math.pi * _middles()).flatten(0, 1), 0.2)


def _roll(uniform: Tensor) -> Tensor:
    turn = 1.5 * math.pi * (1 + 2 * uniform)
    return torch.stack([turn * turn.cos(), turn * turn.sin()], 1) / 5


def swiss_roll(count: int) -> Tensor:
    """A spiral of one and a half turns with noise: the swiss roll without its depth."""
    return _roll(torch.rand(count)) + 0.2 * torch.randn(count, 2)


def _swiss_roll(x: Tensor) -> Tensor:
    return _smoothed(x, _roll(_middles()), 0.2)


def _spiral(uniform: Tensor) -> Tensor:
    turn = uniform.sqrt() * 3 * math.pi
    return torch.stack([-turn * turn.cos(), turn * turn.sin()], 1) / 3


def two_spirals(count: int) -> Tensor:
    """Two spirals of one and a half turns, radius up to pi, with noise."""
    uniform, first = torch.rand(count), torch.rand(count) < 0.5
    on = _spiral(uniform) + torch.rand(2, count).T / 6
    return torch.where(first[:, None], -on, on) + 0.1 * torch.randn(count, 2)


def _two_spirals(x: Tensor) -> Tensor:
    # The noise of one coordinate is uniform on (0, 1 / 6) and normal: a difference of two cdfs.
    curve, arms = _spiral(_middles()), []
    for sign in (1.0, -1.0):
        gap = (sign * x[:, None, :] - curve) / 0.1
        shift = 1 / 6 / 0.1
        upper, lower = torch.special.ndtr(gap), torch.special.ndtr(gap - shift)
        arms.append(((upper - lower) * 6).prod(2).mean(1))
    return torch.stack(arms).mean(0).log()


RADIAL, TANGENTIAL, ARMS, RATE = 0.3, 0.1, 5, 0.25


def pinwheel(count: int) -> Tensor:
    """Five normal distributions along rays, each turned the more the farther out."""
    radial, tangential = 1 + RADIAL * torch.randn(count), TANGENTIAL * torch.randn(count)
    turn = torch.randint(ARMS, (count,)) * 2 * math.pi / ARMS + RATE * radial.exp()
    x = radial * turn.cos() - tangential * turn.sin()
    return -2 * torch.stack([-x, radial * turn.sin() + tangential * turn.cos()], 1)


def _pinwheel(x: Tensor) -> Tensor:
    # (radial, tangential) is x turned back by an angle that depends on radial alone: so radial is
    # a root of one equation for each arm, and |det| = |1 - RATE exp(radial) tangential|.
    x, arms = x * torch.tensor([0.5, -0.5]), torch.arange(ARMS) * 2 * math.pi / ARMS

    def back(radial: Tensor) -> tuple[Tensor, Tensor]:
        turn = arms[:, None] + RATE * radial.exp()
        cos, sin = turn.cos(), turn.sin()
        first, second = x[:, 0, None, None], x[:, 1, None, None]
        return first * cos + second * sin, second * cos - first * sin

    line = torch.linspace(-1.0, 3.0, 161, dtype=torch.float64)
    gap = back(line)[0] - line
    root = gap[..., :-1] * gap[..., 1:] <= 0
    low, high = (line[:-1].expand_as(root)[root], line[1:].expand_as(root)[root])
    point, arm = torch.nonzero(root)[:, 0], torch.nonzero(root)[:, 1]
    x, arms = x[point], arms[arm][:, None]

    def residual(radial: Tensor) -> Tensor:
        return back(radial[:, None, None])[0].flatten() - radial

    start = residual(low)
    for _ in range(30):
        middle = (low + high) / 2
        same = residual(middle) * start > 0
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    radial, tangential = low, back(low[:, None, None])[1].flatten()
    normal = ((radial - 1) / RADIAL).square() + (tangential / TANGENTIAL).square()
    det = (1 - RATE * radial.exp() * tangential).abs()
    scale = 2 * math.pi * RADIAL * TANGENTIAL * ARMS * 4
    total = torch.zeros(len(gap), dtype=torch.float64)
    return total.index_add(0, point, (-normal / 2).exp() / (det * scale)).log()


def _middles() -> Tensor:
    return (torch.arange(KNOTS, dtype=torch.float64) + 0.5) / KNOTS


def _smoothed(x: Tensor, points: Tensor, noise: float) -> Tensor:
    """Return the log-density of normal noise around points of equal weight."""
    parts = -torch.cdist(x, points).square() / (2 * noise**2)
    return parts.logsumexp(1) - math.log(len(points) * 2 * math.pi * noise**2)

r"""Residual blocks in turn, each of one hidden layer, evaluated as one operation.

A guide runs few particles through many small blocks, so that the number of operations is the cost.
Here the values run from block to block, and all else is one batched operation for all blocks: the
Jacobians :math:`A_b = I + W_{2b} S_b W_{1b}`, their factors, and the gradients of all weights.
Scales :math:`s` of coordinates go into the weights: :math:`x + s\, g(x / s)` is the residual block
of :math:`W_1\, \mathrm{diag}(1 / s)`, :math:`\mathrm{diag}(s)\, W_2` and :math:`s\, b_2`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import (
    COARSE,
    full_precision,
    goes_on,
    gradients_with_graph,
    in_plain_autograd,
    needs_plain_operations,
    precisely,
)
from ..activations.base import Curved
from ..contractions.layers import CurvedLayers
from ..contractions.packed import whole
from ..contractions.sequential import LayerSequence
from ..coordinates import CoordinateMap
from ..logdet import Exact
from ..operators.solve import COARSEST, floor
from .base import Block, Evaluation
from .residual import ResidualBlock

# Rows of a batch, and numbers in the largest tensor, up to which the number of operations decides.
ROWS, LARGEST = 64, 2**20
# The largest logarithm of a ratio of scales: beyond it, weights times scales would lose digits.
SPREAD = 5.0


class _Weights(NamedTuple):
    """The weights of ``B`` blocks: shapes ``(B, k, D), (B, k), (B, D, k), (B, D)``."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor


def evaluate_in_turn(blocks: Sequence[Block], x: Tensor) -> Evaluation | None:
    """Evaluate blocks in turn at ``x``; None for blocks, sizes or modes that this is not made for.

    Made for residual blocks of one shape with an exact log-determinant, one hidden layer and at
    most a scale as coordinates, in plain reverse mode. ``x`` is as :meth:`Block.check` returns it.
    """
    if len(blocks) < 2 or not in_plain_autograd() or x.dtype in COARSE:
        return None
    shape = blocks[0].event_shape
    if len(shape) != 1 or x.numel() > ROWS * x.shape[-1]:
        return None
    for block in blocks:
        if type(block) is not ResidualBlock or block.event_shape != shape:
            return None
        if type(block.estimator(x.shape[-1])) is not Exact or "evaluate" in vars(block):
            return None
        if floor(x.dtype, block.contraction.lipschitz) > COARSEST:
            return None
    with full_precision(x):
        found = _weights_of(blocks, x)
        if found is None:
            return None
        core, weights = found
        flat = x.reshape(-1, x.shape[-1])
        y, log_det, a, factors, pivots = _InTurn.apply(core, flat, *weights)

    def vjp(w: Tensor) -> Tensor:
        with torch.no_grad(), full_precision(x):
            rows = w.reshape(flat.shape)[:, None]
            for matrix in reversed(a.unbind()):
                rows = rows @ matrix
            return rows.reshape(w.shape)

    def inverse_vjp(w: Tensor) -> Tensor:
        with torch.no_grad(), full_precision(x):
            rows = w.reshape(flat.shape)[..., None]
            for lu, swaps in zip(factors.unbind(), pivots.unbind(), strict=True):
                rows = torch.linalg.lu_solve(lu, swaps, rows, adjoint=True)
            return rows.reshape(w.shape)

    value = log_det.reshape(x.shape[:-1])
    return Evaluation(x, y.reshape(x.shape), lambda: value, vjp, inverse_vjp)


def _weights_of(blocks: Sequence[Block], x: Tensor) -> tuple[Curved, _Weights] | None:
    """Stack the acting weights of blocks of one shape, with the scales of coordinates."""
    maps: list[LayerSequence] = []
    for block in blocks:
        g = block.contraction_map()
        if type(g) is not LayerSequence or g.conditioner is not None:
            return None
        maps.append(g)
    layers = _stacked(maps)
    if layers is None or layers.weights[0].dtype != x.dtype:
        return None
    [core], (w1, w2), (b1, b2) = layers
    _, width, dim = w1.shape
    # The determinant of a narrow layer has a smaller side than that of the Jacobian.
    if dim > width or len(blocks) * x.numel() * width > LARGEST:
        return None
    coordinates = [b.coordinates for b in blocks if b.coordinates is not None]
    if not coordinates:
        return core, _Weights(w1, b1, w2, b2)
    log_scales = _log_scales(coordinates) if len(coordinates) == len(blocks) else None
    if log_scales is None:
        return None
    found = log_scales.detach()
    if float((found.amax(1) - found.amin(1)).max()) > SPREAD:
        return None
    s = log_scales.exp()
    w1, w2, b2 = w1 * torch.exp(-log_scales)[:, None], s[..., None] * w2, s * b2
    return core, _Weights(w1, b1, w2, b2)


def _stacked(maps: Sequence[LayerSequence]) -> CurvedLayers | None:
    """Return sequences of one hidden layer each as one, with stacked tensors, or None."""
    one = maps[0].whole
    if one is not None:
        layers = CurvedLayers.of(one.layers)
        rows = [g.row if g.whole is one else None for g in maps]
        if layers is not None and rows == list(range(len(layers.weights[0]))):
            return layers if len(layers.cores) == 1 else None
    found: list[CurvedLayers] = []
    for g in maps:
        layers = CurvedLayers.of(g.layers)
        if layers is None or len(layers.cores) > 1 or (found and not _alike(layers, found[0])):
            return None
        found.append(layers)
    _, weights, biases = zip(*found, strict=True)
    stacks = [tuple(map(torch.stack, zip(*each, strict=True))) for each in (weights, biases)]
    return CurvedLayers(found[0].cores, *stacks)


def _log_scales(coordinates: Sequence[CoordinateMap]) -> Tensor | None:
    """Return the logarithms of the scales, shape ``(B, D)``; None if some have no scales."""
    one = whole(coordinates)
    if one is not None:
        return one.diagonal()
    logs = [c.diagonal() for c in coordinates]
    known = [log for log in logs if log is not None]
    return torch.stack(known) if len(known) == len(logs) else None


def _alike(layers: CurvedLayers, others: CurvedLayers) -> bool:
    """Return True if two networks differ in the values of their weights only."""
    weight, like = layers.weights[0], others.weights[0]
    if weight.shape != like.shape or weight.dtype != like.dtype:
        return False
    core, other = layers.cores[0], others.cores[0]
    return core is other or core.settings() == other.settings()


class _InTurn(Function):
    r"""The value, :math:`\log\det A` summed over the blocks, and the matrices with their factors.

    The gradient of :math:`\log\det A_b` in :math:`J_b` is :math:`A_b^{-\top}`. Only the first two
    results have gradients.
    """

    @staticmethod
    def forward(ctx, core: Curved, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        w1, b1, w2, b2 = weights
        points: list[Tensor] = []
        inputs: list[Tensor] = []
        for i in range(len(w1)):
            points.append(x)
            inputs.append(torch.addmm(b1[i], x, w1[i].T))
            x = torch.addmm(b2[i], core(inputs[-1]), w2[i].T).add_(x)
        h, p, c = core.value_slope_curvature(torch.stack(inputs))
        a = _one_plus_jacobians(w1, w2, p)
        factors, pivots, _ = torch.linalg.lu_factor_ex(a)
        log_det = factors.diagonal(dim1=-2, dim2=-1).abs().log().sum((0, 2))
        ctx.core = core
        ctx.save_for_backward(points[0], *weights, torch.stack(points), h, p, c, factors, pivots)
        ctx.mark_non_differentiable(a, factors, pivots)
        ctx.set_materialize_grads(False)
        return x, log_det, a, factors, pivots

    @staticmethod
    @precisely
    def backward(ctx, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        of_y, of_log_det = grad_outputs[:2]
        core, saved = ctx.core, ctx.saved_tensors
        if needs_plain_operations(grad_outputs[:2]):

            def plain(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
                with full_precision(x):
                    return _by_operations(core, x, _Weights(*weights))

            return None, *gradients_with_graph(plain, saved[:5], (of_y, of_log_det))
        _, w1, _, w2, _, points, h, p, c, factors, pivots = saved
        count, n, size = points.shape
        through: Tensor | None = None
        of_a = left = None
        if of_log_det is not None:
            eye = torch.eye(size, dtype=w1.dtype, device=w1.device).expand_as(factors)
            inverse = torch.linalg.lu_solve(factors, pivots, eye)
            of_a = inverse.mT * of_log_det[:, None, None]
            # One product for each block, and not one for each sample.
            left = (of_a.flatten(1, 2) @ w1.mT).unflatten(1, (n, size))
            through = c * (left * w2[:, None]).sum(2)
        g = torch.zeros_like(points[0]) if of_y is None else of_y
        of_values: list[Tensor] = []
        of_inputs: list[Tensor] = []
        for i in reversed(range(count)):
            of_values.append(g)
            of_input = (g @ w2[i]).mul_(p[i])
            if through is not None:
                of_input.add_(through[i])
            of_inputs.append(of_input)
            g = torch.addmm(g, of_input, w1[i])
        if not goes_on(ctx, first=1):
            return None, g, None, None, None, None
        of_value, of_input = torch.stack(of_values[::-1]), torch.stack(of_inputs[::-1])
        of_w1, of_w2 = of_input.mT @ points, of_value.mT @ h
        if of_a is not None and left is not None:
            right = (of_a.mT.flatten(1, 2) @ w2).unflatten(1, (n, size))
            of_w1 += (right * p[:, :, None]).sum(1).mT
            of_w2 += (left * p[:, :, None]).sum(1)
        return None, g, of_w1, of_input.sum(1), of_w2, of_value.sum(1)


def _one_plus_jacobians(w1: Tensor, w2: Tensor, slopes: Tensor) -> Tensor:
    """Return ``I + W_2 S W_1`` of each block and sample, shape ``(B, n, D, D)``."""
    scaled = w2[:, None] * slopes[:, :, None]
    j = (scaled.flatten(1, 2) @ w1).unflatten(1, scaled.shape[1:3])
    return torch.eye(j.shape[-1], dtype=j.dtype, device=j.device) + j


def _by_operations(core: Curved, x: Tensor, weights: _Weights) -> tuple[Tensor, Tensor]:
    """Compute the value and the log-determinant by differentiable operations."""
    w1, b1, w2, b2 = weights
    slopes: list[Tensor] = []
    for i in range(len(w1)):
        h, p = core.value_and_slope(torch.addmm(b1[i], x, w1[i].T))
        slopes.append(p)
        x = x + torch.addmm(b2[i], h, w2[i].T)
    a = _one_plus_jacobians(w1, w2, torch.stack(slopes))
    return x, torch.linalg.slogdet(a).logabsdet.sum(0)

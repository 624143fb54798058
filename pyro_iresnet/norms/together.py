"""Weights of one shape, or its transpose, normalized by one autograd function."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch import gradients_with_graph, precisely

# Brings stacked weights to bounds, with scales or None: :meth:`Norm.apply`, or a rule.
Normalize = Callable[[Tensor, Tensor, Tensor | None], tuple[Any, ...]]


class Rule(ABC):
    """What :meth:`Norm.apply` computes for matrices, with a derivative written by hand."""

    @abstractmethod
    def normalize(
        self, weights: Tensor, bounds: Tensor, scales: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the results of :meth:`Norm.apply`, and tensors for :meth:`gradient`."""

    @abstractmethod
    def gradient(self, grad: Tensor, scales: Tensor | None, kept: Any) -> tuple[Tensor, Tensor]:
        """Return the gradients with respect to the weights and to the scales, shape ``(n,)``.

        Arguments:
            grad: the gradient with respect to the normalized weights.
            scales: as in :meth:`normalize`.
            kept: the tensors that :meth:`normalize` returned for this method.
        """


class Group:
    """Weights of one shape, or its transpose, in the order in which they came.

    Attributes:
        members: the place of each weight among all weights.
        weights: matrices and stacked matrices, or kernels.
        turned: True for each weight with more rows than columns.
        bounds: bounds of their norms.
        scales: as in :meth:`Norm.constrain_all`.
        sizes: the number of matrices of each weight, 0 for a weight that is one.
    """

    def __init__(self) -> None:
        self.members: list[int] = []
        self.weights: list[Tensor] = []
        self.turned: list[bool] = []
        self.bounds: list[float] = []
        self.scales: list[Tensor | None] = []
        self.sizes: list[int] = []

    def normalized(
        self, normalize: Normalize, rule: Rule | None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """Return the weights at their bounds, and a proven bound of each, or None.

        Arguments:
            normalize: normalizes stacked weights, by differentiable operations.
            rule: computes the same by a derivative written by hand; None if there is no rule.
        """
        # None for the common case: no weight is stacked.
        sizes = self.sizes if any(self.sizes) else None
        if rule is not None:
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                *acting, known, _, _ = _Together.apply(
                    normalize,
                    rule,
                    self.turned,
                    sizes,
                    self.bounds,
                    *self.weights,
                    *self.scales,
                )
                return acting, known.unbind() if sizes is None else _split(known, sizes)
            normalize = rule.normalize
        many = _stacked(self.weights, self.turned, sizes)
        bounds = many.new_tensor(self.bounds if sizes is None else _repeated(self.bounds, sizes))
        acting, known, *_ = normalize(many, bounds, _stacked_scales(self.scales, many, sizes))
        views = _unstacked(acting, self.turned, sizes)
        if known is None:
            return views, len(views) * [None]
        return views, known.unbind() if sizes is None else _split(known, sizes)


def _split(many: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return the first rows by the first size, and so on; a size of 0 takes one row as it is."""
    pieces = many.split([size or 1 for size in sizes])
    return [p if size else p[0] for p, size in zip(pieces, sizes, strict=True)]


def _repeated(bounds: Sequence[float], sizes: Sequence[int]) -> list[float]:
    return [b for b, size in zip(bounds, sizes, strict=True) for _ in range(size or 1)]


# Loops, not comprehensions: each call of Python shows in a step of a small flow.
def _stacked(
    weights: Sequence[Tensor], turned: Sequence[bool], sizes: Sequence[int] | None
) -> Tensor:
    wide = list(weights)
    for i, turn in enumerate(turned):
        if turn:
            wide[i] = wide[i].transpose(0, 1) if sizes is None else wide[i].mT
    if sizes is None:
        return torch.stack(wide)
    return torch.cat([w if size else w[None] for w, size in zip(wide, sizes, strict=True)])


def _unstacked(many: Tensor, turned: Sequence[bool], sizes: Sequence[int] | None) -> list[Tensor]:
    """Return views of stacked weights, turned back."""
    views = list(many.unbind()) if sizes is None else _split(many, sizes)
    for i, turn in enumerate(turned):
        if turn:
            views[i] = views[i].transpose(0, 1) if sizes is None else views[i].mT
    return views


def _stacked_scales(
    scales: Sequence[Tensor | None], like: Tensor, sizes: Sequence[int] | None
) -> Tensor | None:
    """Return factors as one tensor, 1 for None; None if all are None."""
    found, one = False, like.new_ones(())
    factors: list[Tensor] = []
    for scale in scales:
        found = found or scale is not None
        factors.append(one if scale is None else scale)
    if not found:
        return None
    if sizes is None:
        return torch.stack(factors)
    return torch.cat([f.expand(n or 1) for f, n in zip(factors, sizes, strict=True)])


class _Together(Function):
    """The normalized weights, as views of one tensor, and their proven bounds.

    The last two outputs are the stacked weights and scales: second derivatives go through them.
    """

    @staticmethod
    def forward(
        ctx,
        normalize: Normalize,
        rule: Rule,
        turned: Sequence[bool],
        sizes: Sequence[int] | None,
        bounds: Sequence[float],
        *inputs: Any,
    ):
        weights, scales = inputs[: len(turned)], inputs[len(turned) :]
        many = _stacked(weights, turned, sizes)
        limits = many.new_tensor(bounds if sizes is None else _repeated(bounds, sizes))
        factors = _stacked_scales(scales, many, sizes)
        acting, known, kept = rule.normalize(many, limits, factors)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(known)
        ctx.save_for_backward(many, limits, factors, *kept)
        ctx.normalize, ctx.rule, ctx.turned, ctx.sizes = normalize, rule, turned, sizes
        return *_unstacked(acting, turned, sizes), known, many, factors

    @staticmethod
    @precisely
    def backward(ctx, *grads: Tensor | None):
        many, limits, factors, *kept = ctx.saved_tensors
        *of_acting, _, of_many, of_factors = grads
        n = len(of_acting)
        given = [grad for grad in of_acting if grad is not None]
        if given:
            if len(given) < n:
                shaped = zip(of_acting, _unstacked(many, ctx.turned, ctx.sizes), strict=True)
                given = [torch.zeros_like(w) if g is None else g for g, w in shaped]
            grad = _stacked(given, ctx.turned, ctx.sizes)
            if torch.is_grad_enabled():
                # A second derivative is under way: the gradient must be a function of W again.
                found = gradients_with_graph(
                    lambda m, *f: [ctx.normalize(m, limits, *(f or (None,)))[0]],
                    [many] if factors is None else [many, factors],
                    [grad],
                )
            else:
                found = ctx.rule.gradient(grad, factors, kept)
            of_many = _sum(of_many, found[0])
            of_factors = None if factors is None else _sum(of_factors, found[1])
        turned, sizes = ctx.turned, ctx.sizes
        of_weights = n * [None] if of_many is None else _unstacked(of_many, turned, sizes)
        of_scales: Sequence[Tensor | None] = n * [None]
        if factors is not None and of_factors is not None:
            of_scales = of_factors.unbind() if sizes is None else _split(of_factors, sizes)
        pairs = zip((*of_weights, *of_scales), ctx.needs_input_grad[5:], strict=True)
        return None, None, None, None, None, *(found if needed else None for found, needed in pairs)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second

"""Weights of one shape, or its transpose, normalized by one autograd function."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

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
        weights: matrices, or kernels.
        turned: True for each weight with more rows than columns.
        bounds: bounds of their norms.
        scales: as in :meth:`Norm.constrain_all`.
    """

    def __init__(self) -> None:
        self.members: list[int] = []
        self.weights: list[Tensor] = []
        self.turned: list[bool] = []
        self.bounds: list[float] = []
        self.scales: list[Tensor | None] = []

    def normalized(
        self, normalize: Normalize, rule: Rule | None
    ) -> tuple[Sequence[Tensor], Tensor | None]:
        """Return the weights at their bounds, and proven bounds, shape ``(n,)``, or None.

        Arguments:
            normalize: normalizes stacked weights, by differentiable operations.
            rule: computes the same by a derivative written by hand; None if there is no rule.
        """
        if rule is not None:
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                *acting, known, _, _ = _Together.apply(
                    normalize, rule, self.turned, self.bounds, *self.weights, *self.scales
                )
                return acting, known
            normalize = rule.normalize
        many = _stacked(self.weights, self.turned)
        bounds, scales = many.new_tensor(self.bounds), _stacked_scales(self.scales, many)
        acting, known, *_ = normalize(many, bounds, scales)
        return _unstacked(acting, self.turned), known


# Loops, not comprehensions: each call of Python shows in a step of a small flow.
def _stacked(weights: Sequence[Tensor], turned: Sequence[bool]) -> Tensor:
    wide = list(weights)
    for i, turn in enumerate(turned):
        if turn:
            wide[i] = wide[i].transpose(0, 1)
    return torch.stack(wide)


def _unstacked(many: Tensor, turned: Sequence[bool]) -> list[Tensor]:
    """Return views of stacked weights, turned back."""
    views = list(many.unbind())
    for i, turn in enumerate(turned):
        if turn:
            views[i] = views[i].transpose(0, 1)
    return views


def _stacked_scales(scales: Sequence[Tensor | None], like: Tensor) -> Tensor | None:
    """Return scalars as one tensor, 1 for None; None if all are None."""
    found, one = False, like.new_ones(())
    factors: list[Tensor] = []
    for scale in scales:
        found = found or scale is not None
        factors.append(one if scale is None else scale)
    return torch.stack(factors) if found else None


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
        bounds: Sequence[float],
        *inputs: Any,
    ):
        weights, scales = inputs[: len(turned)], inputs[len(turned) :]
        many = _stacked(weights, turned)
        limits, factors = many.new_tensor(bounds), _stacked_scales(scales, many)
        acting, known, kept = rule.normalize(many, limits, factors)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(known)
        ctx.save_for_backward(many, limits, factors, *kept)
        ctx.normalize, ctx.rule, ctx.turned = normalize, rule, turned
        return *_unstacked(acting, turned), known, many, factors

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        many, limits, factors, *kept = ctx.saved_tensors
        *of_acting, _, of_many, of_factors = grads
        n = len(of_acting)
        given = [grad for grad in of_acting if grad is not None]
        if given:
            if len(given) < n:
                shaped = zip(of_acting, _unstacked(many, ctx.turned), strict=True)
                given = [torch.zeros_like(w) if g is None else g for g, w in shaped]
            grad = _stacked(given, ctx.turned)
            if torch.is_grad_enabled():
                # A second derivative is under way: the gradient must be a function of W again.
                found = _differentiate(ctx.normalize, grad, many, limits, factors)
            else:
                found = ctx.rule.gradient(grad, factors, kept)
            of_many, of_factors = _sum(of_many, found[0]), _sum(of_factors, found[1])
        of_weights = n * [None] if of_many is None else _unstacked(of_many, ctx.turned)
        of_scales = n * [None] if factors is None or of_factors is None else of_factors.unbind()
        pairs = zip((*of_weights, *of_scales), ctx.needs_input_grad[4:], strict=True)
        return None, None, None, None, *(found if needed else None for found, needed in pairs)


def _differentiate(
    normalize: Normalize, grad: Tensor, many: Tensor, limits: Tensor, factors: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    acting = normalize(many, limits, factors)[0]
    inputs = [many] if factors is None else [many, factors]
    found = torch.autograd.grad(acting, inputs, grad, create_graph=True)
    return found[0], None if factors is None else found[1]


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second

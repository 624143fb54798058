"""Named factories of test objects. Each factory takes no argument and draws afresh."""

import threading
from dataclasses import dataclass
from functools import partial

import torch
from nflows.transforms import CompositeTransform, InverseTransform
from torch import nn
from torch.distributions import AffineTransform
from torch.nn import functional

from pyro_iresnet import (
    Anderson,
    CayleyBlock,
    ConditionalIResNet,
    ConvContraction,
    DenseContraction,
    FixedPoint,
    InverseIResNet,
    IResNet,
    IResNetTransform,
    Newton,
    ResidualBlock,
    actnorm,
    conditional_iresnet,
    conditional_iresnet_stack,
    iresnet,
    iresnet_stack,
    wrap,
)
from pyro_iresnet.activations import (
    ELU,
    LipSwish,
    Sine,
    Tanh,
)
from pyro_iresnet.contractions import SequentialContraction, SumContraction
from pyro_iresnet.contractions.dense import START
from pyro_iresnet.coordinates import Asinh, DiagonalScale, TriangularScale
from pyro_iresnet.hosts.pyro import ConditionalStack, Stack
from pyro_iresnet.norms import (
    Cholesky,
    Gram,
    Hard,
    Norm,
    PowerIteration,
    SingularValue,
)
from pyro_iresnet.operators import KrylovSolve

DIM = 5
PADDINGS = ("zeros", "circular")
CONTEXT = 3


def trained(contraction, gain=4.0):
    """Enlarge the weights until every bound is active, as after training."""
    with torch.no_grad():
        for name, parameter in contraction.named_parameters():
            if "conditioner" in name:
                continue
            if name.endswith("weight"):
                parameter.mul_(gain)
            if name.endswith("bias"):
                parameter.normal_()
        if isinstance(contraction, DenseContraction):
            # The last layer starts small.
            contraction.layers[-1].weight.div_(START)
    return contraction


class Scaled(nn.Module):
    """Linear map ``factor * A x`` with a fixed matrix A."""

    def __init__(self, factor, matrix):
        super().__init__()
        self.register_buffer("matrix", factor * matrix)

    def forward(self, x):
        return x @ self.matrix.T


class Kink(nn.Module):
    """Contraction ``0.9 |x|``, not differentiable at 0."""

    def forward(self, x):
        return 0.9 * x.abs()


class SineNet(nn.Module):
    """Network of a user: layers of unit norm, sines, and an added context."""

    def __init__(self, dim, context_dim=None):
        super().__init__()
        orthogonal = nn.utils.parametrizations.orthogonal
        self.first = orthogonal(nn.Linear(dim, dim))
        self.last = orthogonal(nn.Linear(dim, dim))
        self.context = None if context_dim is None else nn.Linear(context_dim, dim)

    def forward(self, x, context=None):
        h = self.first(x)
        if self.context is not None:
            h = h + self.context(context)
        return 0.9 * self.last(h.sin())


def dense(dim=DIM, hidden_dims=(8, 7), activation=LipSwish, **options):
    return trained(DenseContraction(dim, hidden_dims, activation=activation, **options))


def conv(channels=2, hidden_channels=(4, 3), **options):
    return trained(ConvContraction((channels, 3, 4), hidden_channels, **options))


def sequence(lipschitz=0.97):
    return SequentialContraction(
        *(dense(lipschitz=lipschitz**0.5, norm=norm) for norm in (Cholesky(), Gram()))
    )


def total(lipschitz=0.97):
    return SumContraction(
        dense(lipschitz=0.4 * lipschitz), dense(lipschitz=0.6 * lipschitz, norm=Gram())
    )


def total_of_images(lipschitz=0.97):
    return SumContraction(*(conv(lipschitz=lipschitz / 2, padding=p) for p in PADDINGS))


def operator(kernel, size, *, circular):
    """Write a convolution of images of one size as a matrix."""
    _, channels, height, width = kernel.shape
    count = channels * size[0] * size[1]
    images = torch.eye(count, dtype=kernel.dtype).reshape(count, channels, *size)
    padding = (height // 2, width // 2)
    if circular:
        pads = (padding[1], padding[1], padding[0], padding[0])
        images, padding = functional.pad(images, pads, mode="circular"), 0
    return functional.conv2d(images, kernel, padding=padding).reshape(count, -1).T


def near_minus(dim=DIM, lipschitz=0.97):
    """Make a slow case for plain iteration: ``-L x`` near 0, flat far away."""
    g = DenseContraction(
        dim, (dim, dim), lipschitz=lipschitz, activation=Tanh, norm=SingularValue()
    )
    first, second = (nn.init.orthogonal_(torch.empty(dim, dim)) for _ in range(2))
    with torch.no_grad():
        for layer, weight in zip(g.layers, (first, second, -(second @ first).T), strict=True):
            layer.weight.copy_(2 * weight)
            layer.bias.zero_()
    return g


@dataclass(frozen=True)
class OneAndInfinity(Norm):
    """The geometric mean of two induced norms: an upper bound, loose by up to a root of n."""

    def __call__(self, weight):
        sizes = weight.abs()
        return sizes.sum(-1).amax(-1).sqrt() * sizes.sum(-2).amax(-1).sqrt()


ACTIVATIONS = {
    "lipswish": LipSwish,
    "lipswish_sharp": partial(LipSwish, beta=5.0),
    "elu": ELU,
    "tanh": Tanh,
    "sine": partial(Sine, frequencies=(0.5, 5.0)),
}

CERTIFIED_NORMS = {
    "gram": Gram(),
    "gram_one_squaring": Gram(squarings=1),
    "singular_value": SingularValue(),
    "user_written": OneAndInfinity(),
    "cholesky": Cholesky(),
    "cholesky_damped": Cholesky(damping=2.0),
    "hard": Hard(Gram()),
    "hard_user_written": Hard(OneAndInfinity()),
}

NORMS = {**CERTIFIED_NORMS, "power_iteration": PowerIteration(steps=100)}

CONTRACTIONS = {
    "linear": partial(dense, hidden_dims=()),
    "one_hidden": partial(dense, hidden_dims=(8,)),
    "two_hidden": dense,
    "three_hidden": partial(dense, hidden_dims=(6, 9, 8)),
    "wide_first": partial(dense, hidden_dims=(20, 4)),
    "wide_last": partial(dense, hidden_dims=(4, 20)),
    "scalar": partial(dense, dim=1),
    "near_minus": near_minus,
    **{f"dense_{n}": partial(dense, activation=a) for n, a in ACTIVATIONS.items()},
    **{f"dense_{n}": partial(dense, norm=s) for n, s in CERTIFIED_NORMS.items()},
    "conv_linear": partial(conv, hidden_channels=()),
    "conv_zeros": conv,
    "conv_circular": partial(conv, padding="circular"),
    "conv_deep": partial(conv, hidden_channels=(4, 3, 4), activation=Tanh),
    "conv_sine": partial(conv, activation=Sine),
    **{f"conv_{n}": partial(conv, norm=s) for n, s in CERTIFIED_NORMS.items()},
    "sequence": sequence,
    "sum": total,
    "sum_of_images": total_of_images,
    "wrapped": lambda: wrap(SineNet(DIM), lipschitz=0.9),
    "wrapped_image": lambda: wrap(SineNet(4), lipschitz=0.9, event_dim=3),
}

SOLVERS = {
    "fixed_point": FixedPoint(),
    "anderson": Anderson(),
    "anderson_1": Anderson(history=1),
    "anderson_plain": Anderson(preconditioner=None),
    "newton": Newton(),
    "newton_krylov": Newton(linear_solve=KrylovSolve(rtol=1.0)),
}

CONDITIONAL = {
    "conditional_dense": partial(dense, context_dim=CONTEXT),
    "conditional_linear": partial(dense, hidden_dims=(), context_dim=CONTEXT),
    "conditional_sine": partial(dense, activation=Sine, context_dim=CONTEXT),
    "conditional_conv": partial(conv, context_dim=CONTEXT),
    "conditional_conv_sine": partial(conv, activation=Sine, context_dim=CONTEXT),
    "conditional_conv_linear": partial(conv, hidden_channels=(), context_dim=CONTEXT),
    "conditional_sequence": lambda: SequentialContraction(dense(context_dim=CONTEXT), dense()),
    "conditional_sum": lambda: SumContraction(
        dense(lipschitz=0.4), dense(lipschitz=0.5, context_dim=CONTEXT)
    ),
    "conditional_wrapped": lambda: wrap(SineNet(DIM, CONTEXT), lipschitz=0.9, context_dim=CONTEXT),
}

EVENT_SHAPES = {"scalar": (1,), "wrapped_image": (2, 3, 4)}


def event_shape(name):
    if "conv" in name or name == "sum_of_images":
        return (2, 3, 4)
    return EVENT_SHAPES.get(name, (DIM,))


def block(dim=DIM, **options):
    return ResidualBlock(dense(dim), **options)


def cayley(dim=DIM, **options):
    return CayleyBlock(dense(dim), **options)


COORDINATES = {
    "diagonal": {"coordinates": DiagonalScale()},
    "triangular": {"coordinates": TriangularScale()},
    "asinh": {"coordinates": Asinh(0.5)},
    "asinh_diagonal": {"coordinates": (Asinh(0.5), DiagonalScale())},
    "asinh_triangular": {"coordinates": (Asinh(0.5), TriangularScale())},
}


def bent(module):
    """Move coordinates far from the identity, as after training."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "coordinates" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    return module


def spread(transform):
    """Give a stack trained ActNorms and active bounds."""
    with torch.no_grad():
        for name, parameter in transform.named_parameters():
            if name.endswith("log_scale"):
                parameter.normal_(std=0.3)
                parameter.data.clamp_(-0.5, 0.5)
            if name.endswith("shift"):
                parameter.normal_()
    for module in transform.modules():
        if isinstance(module, DenseContraction):
            trained(module)
    return transform


PYRO_TRANSFORMS = {
    "iresnet": lambda: IResNet(block()),
    "inverse": lambda: InverseIResNet(block()),
    "wrapped": lambda: IResNet(ResidualBlock(wrap(SineNet(DIM), lipschitz=0.9))),
    "actnorm": lambda: spread(actnorm(DIM)),
    "stack": lambda: spread(iresnet_stack(DIM, 2, [8, 8])),
    "alternating": lambda: spread(Stack([IResNet(block()), actnorm(DIM), InverseIResNet(block())])),
    "default": lambda: iresnet(DIM),
    **{
        name: lambda options=options: IResNet(bent(block(**options)))
        for name, options in COORDINATES.items()
    },
    "inverse_in_coordinates": lambda: InverseIResNet(
        bent(block(**COORDINATES["asinh_triangular"]))
    ),
    "cayley": lambda: IResNet(cayley()),
    "cayley_in_coordinates": lambda: IResNet(bent(cayley(**COORDINATES["asinh_triangular"]))),
    "inverse_cayley": lambda: InverseIResNet(cayley()),
}


def conditional(name="conditional_dense", kind=ResidualBlock, **options):
    return bent(ConditionalIResNet(kind(CONDITIONAL[name](), **options)))


def mixed():
    """Stack one part of every kind for a conditional stack."""
    parts = [actnorm(DIM), conditional(), InverseIResNet(block()), conditional().inv]
    return spread(ConditionalStack([*parts, AffineTransform(0.5, 2.0, event_dim=1)]))


CONDITIONAL_TRANSFORMS = {
    "block": conditional,
    "wrapped": partial(conditional, "conditional_wrapped"),
    "in_coordinates": lambda: conditional(**COORDINATES["asinh_triangular"]),
    "inverse": lambda: conditional().inv,
    "cayley": partial(conditional, kind=CayleyBlock),
    "default": partial(conditional_iresnet, DIM, CONTEXT),
    "stack": lambda: spread(conditional_iresnet_stack(DIM, CONTEXT, 2, [8, 8])),
    "inverse_stack": lambda: spread(conditional_iresnet_stack(DIM, CONTEXT, 2, [8, 8])).inv,
    "mixed": mixed,
}

NFLOWS_TRANSFORMS = {
    "default": lambda: IResNetTransform(DIM),
    "width": lambda: IResNetTransform(DIM, 8),
    "widths": lambda: IResNetTransform(DIM, [8]),
    "from_block": lambda: IResNetTransform.from_block(block()),
    "wrapped": lambda: IResNetTransform.from_block(
        ResidualBlock(wrap(SineNet(DIM), lipschitz=0.9))
    ),
    **{
        name: lambda options=options: IResNetTransform.from_block(bent(block(**options)))
        for name, options in COORDINATES.items()
    },
    "cayley": lambda: IResNetTransform.from_block(cayley()),
    "implicit": lambda: CompositeTransform(
        [IResNetTransform.from_block(block()), InverseTransform(IResNetTransform(DIM))]
    ),
}


def errors_in_threads(work, count=3):
    """Run a function in several threads at once; return the errors."""
    errors = []

    def caught():
        try:
            work()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=caught) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def everything(module, evaluation, x, *, second):
    """List the results of an evaluation, and their derivatives with unequal weights."""
    y, log_det = evaluation.y, evaluation.log_det()
    w = torch.linspace(-1.0, 2.0, y.numel(), dtype=y.dtype).reshape(y.shape)
    loss = (w * y.sin()).sum() + (w[..., 0] * log_det).sum()
    inputs = [x, *module.parameters()]
    first = torch.autograd.grad(loss, inputs, create_graph=second)
    results = [y, log_det, evaluation.vjp(w), evaluation.inverse_vjp(w), *first]
    if second:
        squares = sum(grad.square().sum() for grad in first)
        results += torch.autograd.grad(squares, inputs)
    return results

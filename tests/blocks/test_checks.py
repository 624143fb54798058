"""Tensors and numbers of the wrong kind are refused in words of this package."""

import numpy as np
import pytest
import torch
from torch import nn

from pyro_iresnet import (
    ConvContraction,
    DenseContraction,
    IResNet,
    IResNetError,
    PowerSeries,
    ResidualBlock,
    actnorm,
    iresnet,
    iresnet_stack,
    logdet_with_error,
    wrap,
)
from pyro_iresnet.contractions import SumContraction
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError, ContractionError
from pyro_iresnet.hosts.nflows import PatientActNorm
from pyro_iresnet.hosts.pyro import ConditionalStack, LinearAutoregressive, Stack
from pyro_iresnet.norms import Gram
from pyro_iresnet.solvers import solve

from .. import zoo

X = torch.randn(4, 3)
KINDS = {
    "meta": (lambda: X.double().to("meta"), "on device cpu, that of the parameters; got meta"),
    "coo": (lambda: X.double().to_sparse(), r"to_dense\(\)"),
    "csr": (lambda: X.double().to_sparse_csr(), r"to_dense\(\)"),
    "mkldnn": (lambda: X.float().to_mkldnn(), r"to_dense\(\)"),
    "nested": (lambda: torch.nested.nested_tensor([X[:2], X[2:]], layout=torch.jagged), "nested"),
    "complex": (lambda: X.cdouble(), "view_as_real"),
    "masked": (lambda: torch.masked.masked_tensor(X.double(), X > 0), r"to_tensor\(0.0\)"),
    "lazy": (nn.UninitializedParameter, "a lazy module"),
    "float8": (lambda: X.to(torch.float8_e4m3fn), "dtype"),
    "list": (lambda: X.tolist(), "torch.as_tensor"),
    "array": (lambda: X.numpy(), "torch.as_tensor"),
    "none": (lambda: None, "torch.as_tensor"),
}
CALLS = {
    "block": lambda x: ResidualBlock(DenseContraction(3, [8]))(x),
    "inverse": lambda x: ResidualBlock(DenseContraction(3, [8])).inverse(x),
    "solve": lambda x: solve(DenseContraction(3, [8]), x),
    "actnorm": lambda x: actnorm(3)(x),
    "patient": lambda x: PatientActNorm(3)(x),
    "affine": lambda x: LinearAutoregressive(3).inv(x),
    "stack": lambda x: iresnet_stack(3, 1, [8])(x),
    "transform": lambda x: iresnet(3, [8])(x),
}


@pytest.mark.filterwarnings("ignore:.*prototype:UserWarning", "ignore:.*beta state:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_refuses_kinds_of_tensors(name, kind):
    make, words = KINDS[kind]
    with pytest.raises(ArgumentTypeError, match=words):
        CALLS[name](make())


def test_shapes_on_meta():
    with torch.device("meta"):
        x = torch.empty(4, 3)
        stack = iresnet_stack(3, 2, [8])
        y = stack(x)
        assert (y.shape, y.is_meta) == (x.shape, True)
        assert stack.log_abs_det_jacobian(x, y).shape == (4,)
        assert stack(x) is not y
        refused = ((stack.inv, 3), (iresnet(20, [8]).block.forward_and_log_det, 20))
        for call, dim in refused:
            with pytest.raises(ArgumentTypeError, match="meta, which has a shape and no values"):
                call(torch.empty(4, dim))


SIZES = {
    "image": lambda: ResidualBlock(ConvContraction((1, 4, 4), [4]))(torch.randn(2, 1, 0, 4)),
    "event": lambda: ResidualBlock(wrap(nn.Tanh(), lipschitz=0.5)).inverse(torch.randn(4, 0)),
    "weight": lambda: Gram().constrain(torch.zeros(0, 3), 1.0),
    "norm": lambda: Gram()(torch.zeros(3, 0)),
    "shape": lambda: IResNet(ResidualBlock(wrap(nn.Tanh(), lipschitz=0.5))).forward_shape((4, 0)),
}


@pytest.mark.parametrize("name", SIZES)
def test_refuses_sizes_of_zero(name):
    with pytest.raises(ArgumentError, match="at least"):
        SIZES[name]()


def test_accepts_empty_batch():
    block = ResidualBlock(ConvContraction((1, 4, 4), [4]))
    assert block.inverse(torch.randn(0, 1, 4, 4)).shape == (0, 1, 4, 4)


INTEGERS = {
    "input_dim": lambda n: iresnet(n, [8]).block.contraction.dim,
    "hidden_dims": lambda n: len(iresnet(2, [n]).block.contraction.layers[0].bias),
    "terms": lambda n: PowerSeries(terms=n).terms,
    "features": lambda n: len(PatientActNorm(n).log_scale),
    "num_blocks": lambda n: len(iresnet_stack(2, n, [8], between=None).parts),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name):
    make = INTEGERS[name]
    for three in (3, np.int64(3), torch.tensor(3)):
        found = make(three)
        assert (type(found), found) == (int, 3)
    wrong = (torch.tensor(1.5), torch.tensor([3, 3]), torch.tensor(True), np.bool_(True), True, "3")
    for value in (*wrong, torch.tensor(3, device="meta"), 3.0):
        with pytest.raises(ArgumentTypeError, match="to be an integer"):
            make(value)
    with pytest.raises(ArgumentError, match="at least 1"):
        make(0)
    with pytest.raises(ArgumentError, match="below 2"):
        make(10**30)


def test_refuses_cache_sizes():
    block = zoo.block()
    for size in (2, -1, None, True, "1", 1.5):
        for make in (
            lambda n: IResNet(block, cache_size=n),
            lambda n: IResNet(block).with_cache(n),
            lambda n: Stack([IResNet(block)], cache_size=n),
            lambda n: ConditionalStack([IResNet(block)], cache_size=n),
        ):
            with pytest.raises(IResNetError, match="Expected cache_size"):
                make(size)


def test_refuses_options_of_solve():
    g, y = zoo.dense(), torch.randn(3, zoo.DIM)
    for block in (ResidualBlock(g), zoo.cayley(), ResidualBlock(g, **zoo.COORDINATES["diagonal"])):
        for atol in (torch.ones(2), torch.tensor(torch.nan), torch.tensor(-1.0), torch.ones(1, 3)):
            with pytest.raises(ArgumentError, match="Expected atol"):
                block.solve(y, atol=atol)
        atol = torch.tensor([1e-3, 1e-6, 1e-9])
        loose = block.solve(y, atol=atol, rtol=0.0)
        assert (loose.stats.tolerance < 1.1 * atol).all()
        for name, value in (("max_steps", torch.tensor(1.5)), ("throw", 1), ("rtol", "a")):
            with pytest.raises(ArgumentTypeError, match=f"Expected {name}"):
                block.solve(y, **{name: value})
        with pytest.raises(ArgumentTypeError, match=r"Block.solve among .*Did you mean 'rtol'"):
            block.solve(y, rtl=1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of", "ignore:ComplexHalf")
def test_refuses_kinds_of_weights():
    with pytest.raises(ArgumentTypeError, match="complex64"):
        Gram()(X.to(torch.complex32))
    for call in (Gram(), lambda w: Gram().constrain(w, 0.9)):
        with pytest.raises(ArgumentTypeError, match=r"16 bits or more.*weight.float\(\)"):
            call(X.to(torch.float8_e4m3fn))
    for x in (nn.UninitializedParameter(), torch.nested.nested_tensor([X[:2], X[2:3]])):
        with pytest.raises(ArgumentTypeError, match=r"x with a shape|nested tensor"):
            logdet_with_error(iresnet(3, [8]), x, 2)


def test_bounds_view_of_opposite_sign():
    w = torch._neg_view(X)
    torch.testing.assert_close(Gram().constrain(w, 0.9), Gram().constrain(-X, 0.9))


def test_subclasses_of_tensors():
    block, x = ResidualBlock(DenseContraction(3, [8])).eval(), X.double()
    for one in (nn.Parameter(x), x.as_subclass(type("Own", (torch.Tensor,), {}))):
        found = block(one).detach().as_subclass(torch.Tensor)
        torch.testing.assert_close(found, block(x).detach())


def test_refuses_bounds():
    weight = torch.randn(2, 3, 3)
    for bound in (-1.0, 0.0, torch.nan, torch.inf):
        for value in (bound, torch.tensor(bound), torch.tensor([1.0, bound])):
            with pytest.raises(ArgumentError, match="bound to be finite and above 0"):
                Gram().constrain(weight, value)
    for value in (torch.ones(3), torch.ones(1, 2)):
        with pytest.raises(ArgumentError, match="bound of a shape"):
            Gram().constrain(weight, value)
    for value in (torch.tensor(1.0).float(), torch.tensor(1), "1", torch.ones(2, device="meta")):
        with pytest.raises(ArgumentTypeError, match="Expected bound"):
            Gram().constrain(weight, value)
    bounds = torch.tensor([0.5, 0.7])
    mapped = torch.func.vmap(Gram().constrain)(weight, bounds)
    torch.testing.assert_close(mapped, Gram().constrain(weight, bounds))


def test_refuses_arguments_of_truncation_error():
    for arguments in ((1.0, 2), (0.5, 0), (torch.nan, 2), (0.5, 2.5), (0.5, 2, "log")):
        with pytest.raises(IResNetError, match="Expected"):
            PowerSeries().truncation_error(*arguments)


def test_refuses_missing_bias():
    g = zoo.dense()
    g.layers[0].bias = None
    with pytest.raises(ArgumentError, match=r"layers\[0\] to have a bias"):
        g(torch.randn(3, zoo.DIM))


# The highest constants that the dtypes tell from 1.
RESOLVED = {torch.float16: 0.9, torch.bfloat16: 0.37}


@pytest.mark.parametrize("dtype", RESOLVED)
@pytest.mark.parametrize("dim", [2, 3, 5, 20])
def test_log_det_in_half_precision(dim, dtype):
    lipschitz = RESOLVED[dtype]
    block = ResidualBlock(DenseContraction(dim, [8], lipschitz=lipschitz)).to(dtype).eval()
    x = torch.randn(6, dim).to(dtype).requires_grad_()
    y, log_det = block.forward_and_log_det(x)
    # The acting weights are rounded; apart from them the numbers are those of float64.
    rows = torch.func.vmap(torch.func.jacrev(block.contraction))(x.detach()).double()
    exact = torch.linalg.slogdet(torch.eye(dim) + rows).logabsdet
    assert (y.dtype, log_det.dtype) == (dtype, dtype)
    eps = torch.finfo(dtype).eps
    assert (log_det.double() - exact).abs().max() < 4 * dim * eps
    (grad,) = torch.autograd.grad(block.inverse(y.detach()).sum(), block.contraction.layers[0].bias)
    assert grad.isfinite().all()
    assert (block.inverse(y) - x).abs().max() < 16 * eps / (1 - lipschitz)


@pytest.mark.parametrize("coordinates", zoo.COORDINATES)
def test_coordinates_in_half_precision(coordinates):
    g = DenseContraction(3, [8], lipschitz=0.9)
    block = ResidualBlock(g, **zoo.COORDINATES[coordinates]).half()
    x = torch.randn(4, 3).half()
    y, log_det = block.forward_and_log_det(x)
    assert log_det.isfinite().all()
    assert (block.inverse(y) - x).abs().max() < 0.05


def test_refuses_constants_nearly_one():
    block = ResidualBlock(DenseContraction(3, [8])).bfloat16()
    x = torch.randn(4, 3).bfloat16()
    assert block(x).isfinite().all()
    with pytest.raises(ContractionError, match="bfloat16 leaves no digit of the log-determinant"):
        block.forward_and_log_det(x)
    parts = DenseContraction(3, lipschitz=0.5), DenseContraction(3, lipschitz=0.5 - 1e-15)
    refused = (
        lambda: iresnet(3, lipschitz=1 - 1e-15),
        lambda: wrap(nn.Linear(3, 3).bfloat16(), lipschitz=0.9),
        lambda: SumContraction(*parts),
    )
    for make in refused:
        with pytest.raises(ArgumentError, match="tells from 1"):
            make()


def test_batched_gradients_of_inverse():
    block, y = zoo.block(3), torch.randn(2, 3, requires_grad=True)
    x = block.inverse(y)
    eye = torch.eye(6).reshape(6, 2, 3)
    rows = [torch.autograd.grad(x, y, e, retain_graph=True)[0] for e in eye]
    (batched,) = torch.autograd.grad(x, y, eye, is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack(rows))

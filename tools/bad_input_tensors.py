"""Calls with right tensors, and wrong tensors to put in their place."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bad_input_settings import Halved, block, conditional, dense, pictures
from torch import Tensor

import pyro_iresnet as ir
from pyro_iresnet import activations, contractions, coordinates, images, norms, solvers
from pyro_iresnet.hosts import nflows
from pyro_iresnet.hosts import pyro as in_pyro


def tensors(x: Tensor) -> dict[str, Any]:
    """Return wrong tensors in place of ``x``, by the words of the page."""
    bad, huge = x.clone(), x.clone()
    bad.view(len(x), -1)[1, 0] = torch.nan
    huge.view(len(x), -1)[1, 0] = torch.inf
    wide = torch.cat([x, x], -1) if x.dim() < 4 else torch.cat([x, x], 1)
    return {
        "one number": torch.tensor(1.0),
        "too wide": wide,
        "float64": x.double(),
        "float16": x.half(),
        "int64": x.long(),
        "bool": x > 0,
        "complex64": x.cfloat(),
        "on meta": x.to("meta"),
        "sparse COO": x.to_sparse(),
        "sparse CSR": x.reshape(len(x), -1).to_sparse_csr(),
        "MKL-DNN": x.to_mkldnn(),
        "nested": torch.nested.nested_tensor([x[:2], x[2:3]], layout=torch.jagged),
        "no coordinates": x[..., :0],
        "a list": x.tolist(),
        "a NumPy array": x.numpy(),
        "a number": 1.0,
        "a word": "x",
        "None": None,
        "NaN": bad,
        "infinity": huge,
        "1e30": torch.full_like(x, 1e30),
        "denormals": torch.full_like(x, 1e-40),
        "no rows": x[:0],
        "expanded": x[:1].expand_as(x),
        "not contiguous": x.transpose(0, -1).contiguous().transpose(0, -1),
    }


@dataclass(frozen=True)
class Call:
    """A function of tensors, with right arguments.

    Arguments:
        function: called with the arguments by position.
        arguments: right tensors, by name.
        solves: True if a NaN raises, as in an inverse.
        whatever: wrong tensors, by their words, that are right here.
        mixes: True if the tensor is no batch of samples.
    """

    function: Callable[..., Any]
    arguments: dict[str, Tensor]
    solves: bool = False
    whatever: tuple[str, ...] = ()
    mixes: bool = False


ANY_SIZE = ("too wide",)
ANY_DTYPE = ("float64", "float16", "on meta")


def calls() -> dict[str, Call]:
    """Return the calls with tensors, by their words."""
    x, c, y = torch.randn(4, 3), torch.randn(4, 2), torch.randn(4, 3)
    image = torch.randn(4, 1, 3, 3)
    found: dict[str, Call] = {}
    g0, b0 = dense(), block()
    bent = block(coordinates=(coordinates.Asinh(), coordinates.TriangularScale()))
    cayley = ir.CayleyBlock(dense()).eval()
    of_images = ir.ResidualBlock(ir.ConvContraction((1, 3, 3), [2])).eval()
    own = ir.ResidualBlock(ir.wrap(Halved(), lipschitz=0.5)).eval()
    for name, b, point in (
        ("ResidualBlock", block(), x),
        ("ResidualBlock in coordinates", bent, x),
        ("CayleyBlock", cayley, x),
        ("ResidualBlock of images", of_images, image),
        ("ResidualBlock of a wrapped network", own, x),
    ):
        free = (*ANY_SIZE, *ANY_DTYPE, "sparse CSR") if b is own else ()
        if b is of_images:
            free = ()
        solves, given = b is cayley, {"x": point}
        found[name] = Call(b, given, solves, free)
        found[f"{name}: forward_and_log_det"] = Call(b.forward_and_log_det, given, solves, free)
        found[f"{name}: inverse"] = Call(b.inverse, {"y": point}, True, free)
        found[f"{name}: inverse_and_log_det"] = Call(b.inverse_and_log_det, given, True, free)
    under = conditional()
    found["ResidualBlock under a context"] = Call(under, {"x": x, "context": c})
    found["ResidualBlock under a context: inverse"] = Call(
        under.inverse, {"y": y, "context": c}, True
    )
    free = ("None",)
    found["ResidualBlock: x0"] = Call(lambda x0: b0.inverse(y, x0=x0), {"x0": x}, True, free)
    found["solve"] = Call(partial(solvers.solve, dense()), {"y": y}, True)
    found["solve: x0"] = Call(lambda x0: solvers.solve(g0, y, x0=x0), {"x0": x}, True, free)
    atol = torch.full((4,), 1e-3)
    free = ("one number", "a number", "None")
    found["solve: atol"] = Call(lambda a: solvers.solve(g0, y, atol=a), {"atol": atol}, True, free)
    parts = contractions.SequentialContraction, contractions.SumContraction
    for g in (dense(), *[p(dense(lipschitz=0.4)) for p in parts]):
        found[type(g).__name__] = Call(g, {"x": x})
        found[f"{type(g).__name__}: linearize"] = Call(
            lambda x, g=g: g.linearize(x).value, {"x": x}
        )
    for name, t in (
        ("IResNet", ir.IResNet(block())),
        ("InverseIResNet", ir.InverseIResNet(block())),
        ("ActNorm", ir.actnorm(3).eval()),
        ("LinearAutoregressive", in_pyro.LinearAutoregressive(3)),
        ("iresnet_stack", ir.iresnet_stack(3, 1, [8]).eval()),
    ):
        plain = name in ("ActNorm", "LinearAutoregressive")
        found[name] = Call(t, {"x": x}, name == "InverseIResNet")
        found[f"{name}: inv"] = Call(
            lambda y, t=t: t.inv(y), {"y": y}, not plain and name != "InverseIResNet"
        )
        found[f"{name}: log_abs_det_jacobian"] = Call(
            t.log_abs_det_jacobian, {"x": x, "y": y}, whatever=("NaN", "infinity")
        )
    for name, t in (
        ("ConditionalIResNet", ir.ConditionalIResNet(conditional())),
        ("conditional_iresnet_stack", ir.conditional_iresnet_stack(3, 2, 1, [8]).eval()),
    ):
        found[name] = Call(lambda x, c, t=t: t.condition(c)(x), {"x": x, "context": c})
    affine = in_pyro.LinearAutoregressive(3)
    given, free = {"loc": torch.zeros(3), "scale_tril": torch.eye(3)}, ("float64", "float16")
    found["LinearAutoregressive: start_at"] = Call(affine.start_at, given, True, free)
    for name, t in (
        ("IResNetTransform", ir.IResNetTransform(3, 8).eval()),
        ("PatientActNorm", nflows.PatientActNorm(3).eval()),
        ("IResNetComposite", nflows.IResNetComposite([ir.IResNetTransform(3, 8)]).eval()),
    ):
        found[name] = Call(t, {"inputs": x})
        found[f"{name}: inverse"] = Call(t.inverse, {"inputs": x}, name != "PatientActNorm")
    under = ir.IResNetTransform(3, 8, 2).eval()
    found["IResNetTransform under a context"] = Call(under, {"inputs": x, "context": c})
    weights = (*ANY_SIZE, *ANY_DTYPE)
    for name in norms.__all__:
        norm = getattr(norms, name)
        if not inspect.isclass(norm) or not issubclass(norm, norms.Norm) or norm is norms.Norm:
            continue
        norm = norm(norms.Gram()) if norm is norms.Hard else norm()
        found[f"norms.{name}"] = Call(
            norm, {"weight": x}, False, (*weights, "complex64"), mixes=True
        )
        found[f"norms.{name}: constrain"] = Call(
            partial(_constrained, norm), {"weight": x}, whatever=weights, mixes=True
        )
    free = ("one number", "a number")
    found["norms.Gram: constrain, bound"] = Call(
        lambda b: norms.Gram().constrain(x.expand(4, 4, 3), b), {"bound": torch.ones(4)}, True, free
    )
    found["norms.spectral_norm"] = Call(
        norms.spectral_norm, {"weight": x}, False, (*weights, "complex64"), mixes=True
    )
    for name in activations.__all__:
        kind = getattr(activations, name)
        ours = inspect.isclass(kind) and issubclass(kind, activations.Activation)
        if ours and not inspect.isabstract(kind):
            free = ("one number", "no coordinates", *ANY_SIZE, *ANY_DTYPE)
            free = (*free, "infinity") if kind is activations.Tanh else free
            found[f"activations.{name}"] = Call(kind(), {"x": torch.randn(4, 4)}, whatever=free)
    transform, pixels = pictures().eval(), torch.randint(4, (4, 1, 4, 4)).float()
    flow, stack = images.ImageFlow(transform), images.ImageStack(transform)
    whole = ("float64", "float16", "int64")
    free = (*ANY_SIZE, *ANY_DTYPE, "one number", "no coordinates")
    found["dequantize"] = Call(images.dequantize, {"pixels": pixels}, True, (*free, "int64"))
    found["quantize"] = Call(images.quantize, {"x": pixels}, whatever=(*free, "infinity"))
    found["ImageFlow: log_prob"] = Call(flow.log_prob, {"inputs": pixels}, True, whole)
    found["ImageFlow: encode"] = Call(flow.encode, {"inputs": pixels}, True, whole)
    noise = torch.randn(4, 16)
    found["ImageFlow: decode"] = Call(flow.decode, {"noise": noise}, True)
    found["ImageStack"] = Call(stack, {"x": pixels})
    found["ImageStack: inv"] = Call(stack.inv, {"y": noise}, True)
    net = images.IResNetClassifier((1, 4, 4), 2, blocks_per_scale=1, hidden_channels=2).eval()
    found["IResNetClassifier"] = Call(net, {"images": torch.randn(4, 1, 4, 4)})
    found["IResNetClassifier: reconstruct"] = Call(
        lambda f: net.reconstruct(f).images, {"features": torch.randn(4, 1, 4, 4)}, True
    )
    free = ("NaN", "infinity", "None")
    found["certificate: data"] = Call(partial(ir.certificate, b0), {"data": x}, whatever=free)
    found["logdet_with_error: x"] = Call(lambda x: ir.logdet_with_error(b0, x, 2), {"x": x})
    return found


def _constrained(norm: norms.Norm, weight: Tensor) -> Tensor:
    return norm.constrain(weight, 1.0)

"""Right settings of every public callable, and wrong ones to put in their place."""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDelta
from torch import Tensor, nn

import pyro_iresnet as ir
from pyro_iresnet import (
    activations,
    blocks,
    contractions,
    coordinates,
    diagnostics,
    images,
    logdet,
    norms,
    operators,
    options,
    solvers,
    tables,
    training,
)
from pyro_iresnet.hosts import nflows
from pyro_iresnet.hosts import pyro as in_pyro

NAMESPACES = (
    "",
    ".hosts.pyro",
    ".hosts.nflows",
    ".blocks",
    ".contractions",
    ".norms",
    ".activations",
    ".logdet",
    ".solvers",
    ".coordinates",
    ".operators",
    ".diagnostics",
    ".options",
    ".images",
    ".tables",
    ".training",
)
Recipe = tuple[Callable[..., Any], dict[str, Any]]


def model() -> None:
    """Sample a normal site."""
    pyro.sample("z", dist.Normal(0.0, 1.0))


def guide() -> None:
    """Sample near the model."""
    pyro.sample("z", dist.Normal(0.1, 1.1))


def dense(dim: int = 3, **given: Any) -> contractions.DenseContraction:
    """Make a small contraction."""
    return ir.DenseContraction(dim, [8], **given)


def block(**given: Any) -> ir.ResidualBlock:
    """Make a small block in eval mode."""
    return ir.ResidualBlock(dense(), **given).eval()


def conditional() -> ir.ResidualBlock:
    """Make a small block under a context."""
    return ir.ResidualBlock(dense(context_dim=2)).eval()


class Halved(nn.Module):
    """A network of a user, with slopes up to a half."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x.tanh()


def estimator(**given: Any) -> tables.DensityEstimator:
    """Make a density estimator, and check the arguments as ``fit`` does."""
    made = tables.DensityEstimator(**given)
    made._check_parameters()
    return made


estimator.__signature__ = inspect.signature(  # pyright: ignore[reportFunctionMemberAccess]
    tables.DensityEstimator
)


PICTURES = {"shape": [1, 4, 4], "blocks_per_scale": 1, "hidden_channels": 2, "levels": 4}


def pictures() -> images.ImageTransform:
    """Make a small transform of images."""
    return images.iresnet_image_transform((1, 4, 4), 1, hidden_channels=2, levels=4)


def builders() -> dict[str, Recipe]:
    """Return, by public name, the callables that take settings, with right arguments."""
    at = dense().linearize(torch.randn(4, 3))
    found: dict[str, Recipe] = {
        "iresnet": (ir.iresnet, {"input_dim": 2, "hidden_dims": [4]}),
        "conditional_iresnet": (
            ir.conditional_iresnet,
            {"input_dim": 2, "context_dim": 2, "hidden_dims": [4]},
        ),
        "iresnet_stack": (ir.iresnet_stack, {"input_dim": 2, "num_blocks": 1, "hidden_dims": [4]}),
        "conditional_iresnet_stack": (
            ir.conditional_iresnet_stack,
            {"input_dim": 2, "context_dim": 2, "num_blocks": 1, "hidden_dims": [4]},
        ),
        "iresnet_flow": (nflows.iresnet_flow, {"features": 2, "num_blocks": 1}),
        "conditional_iresnet_flow": (
            nflows.conditional_iresnet_flow,
            {"features": 2, "context_features": 2, "num_blocks": 1},
        ),
        "IResNetTransform": (ir.IResNetTransform, {"features": 2}),
        "IResNetComposite": (nflows.IResNetComposite, {"transforms": [ir.IResNetTransform(2)]}),
        "PatientActNorm": (nflows.PatientActNorm, {"features": 2}),
        "IResNetFlow": (
            nflows.IResNetFlow,
            {"transform": nflows.IResNetComposite([ir.IResNetTransform(2)]), "features": 2},
        ),
        "IResNet": (ir.IResNet, {"block": block()}),
        "InverseIResNet": (ir.InverseIResNet, {"block": block()}),
        "ConditionalIResNet": (ir.ConditionalIResNet, {"block": conditional()}),
        "Stack": (in_pyro.Stack, {"parts": [ir.iresnet(2, [4])]}),
        "ConditionalStack": (in_pyro.ConditionalStack, {"parts": [ir.iresnet(2, [4])]}),
        "ActNorm": (in_pyro.ActNorm, {"input_dim": 2}),
        "actnorm": (ir.actnorm, {"input_dim": 2}),
        "LinearAutoregressive": (in_pyro.LinearAutoregressive, {"input_dim": 2}),
        "AutoIResNet": (ir.AutoIResNet, {"model": model, "num_blocks": 1}),
        "ResidualBlock": (ir.ResidualBlock, {"contraction": dense()}),
        "CayleyBlock": (ir.CayleyBlock, {"contraction": dense()}),
        "DenseContraction": (ir.DenseContraction, {"dim": 2, "hidden_dims": [4]}),
        "ConvContraction": (
            ir.ConvContraction,
            {"event_shape": [1, 4, 4], "hidden_channels": [2]},
        ),
        "SequentialContraction": (contractions.SequentialContraction, {}),
        "SumContraction": (contractions.SumContraction, {}),
        "FiLM": (contractions.FiLM, {"context_dim": 2, "widths": [4, 4]}),
        "wrap": (ir.wrap, {"module": nn.Tanh(), "lipschitz": 0.5}),
        "BlockOptions": (options.BlockOptions, {}),
        "cached": (ir.cached, {"flow": block()}),
        "pack_blocks": (blocks.pack_blocks, {"flow": block()}),
        "certificate": (ir.certificate, {"flow": block()}),
        "logdet_with_error": (
            ir.logdet_with_error,
            {"flow": block(), "x": torch.randn(4, 3), "draws": 2},
        ),
        "spectral_norm": (norms.spectral_norm, {"weight": torch.eye(2)}),
        "spectral_penalty": (diagnostics.spectral_penalty, {"flow": block()}),
        "psis": (diagnostics.psis, {"guide": guide, "model": model, "num_samples": 50}),
        "guide_to_inference_data": (
            diagnostics.guide_to_inference_data,
            {"guide": guide, "model": model, "num_samples": 50},
        ),
        "solve": (
            partial(solvers.solve, dense()),
            {"y": torch.randn(4, 3)},
        ),
        "build": (coordinates.build, {"coordinates": coordinates.Asinh(), "event_shape": (3,)}),
        "make_activations": (
            activations.make_activations,
            {"activation": activations.LipSwish, "widths": [4]},
        ),
        "auto_activation": (activations.auto_activation, {"dim": 3}),
        "auto_logdet": (logdet.auto_logdet, {"event_size": 3}),
        "auto_linear_solve": (operators.auto_linear_solve, {"event_size": 3}),
        "ByMode": (ir.ByMode, {"train": ir.Exact(), "evaluate": ir.Exact()}),
        "iresnet_image_flow": (images.iresnet_image_flow, PICTURES),
        "iresnet_image_stack": (images.iresnet_image_stack, PICTURES),
        "iresnet_image_transform": (images.iresnet_image_transform, PICTURES),
        "ImageFlow": (images.ImageFlow, {"transform": pictures()}),
        "ImageStack": (images.ImageStack, {"transform": pictures()}),
        "ImageFlow().sample": (
            images.ImageFlow(pictures().eval()).sample,
            {"num_samples": 2, "batch_size": 1, "temperature": 1.0},
        ),
        "PixelLogit": (images.PixelLogit, {"levels": 4, "margin": 0.1}),
        "dequantize": (partial(images.dequantize, torch.zeros(2, 1, 4, 4)), {"levels": 4}),
        "quantize": (partial(images.quantize, torch.zeros(2, 1, 4, 4)), {"levels": 4}),
        "IResNetClassifier": (
            images.IResNetClassifier,
            {"shape": [1, 4, 4], "num_classes": 2, "blocks_per_scale": 1, "hidden_channels": 2},
        ),
        "Real": (tables.Real, {"low": 0.0, "high": 10.0}),
        "Integer": (tables.Integer, {"low": 0, "high": 10}),
        "Category": (tables.Category, {"labels": ("a", "b")}),
        "HeavyTailed": (tables.HeavyTailed, {}),
        "DensityEstimator": (
            estimator,
            {
                "columns": {},
                "num_blocks": 1,
                "hidden_features": 4,
                "options": options.BlockOptions(),
                "max_steps": 1,
                "batch_size": 16,
                "learning_rate": 0.01,
                "validation_fraction": 0.1,
                "patience": 1.0,
                "trainer": {},
                "progress": False,
            },
        ),
        "FlowModule": (training.FlowModule, {"flow": nflows.iresnet_flow(2, 1)}),
        "GuideModule": (training.GuideModule, {"model": model, "guide": AutoDelta(model)}),
        "TenthAverage": (training.TenthAverage, {}),
        "Hard": (norms.Hard, {"norm": norms.Gram()}),
    }
    for space in (norms, activations, logdet, solvers, coordinates, operators, blocks):
        for name in space.__all__:
            kind = getattr(space, name)
            ours = (norms.Norm, activations.Activation, logdet.LogDet, logdet.Truncation)
            ours += (logdet.ControlVariate, logdet.Series, solvers.Solver, coordinates.Coordinates)
            ours += (operators.LinearSolve, solvers.AffinePreconditioner)
            if inspect.isclass(kind) and issubclass(kind, ours) and not inspect.isabstract(kind):
                found.setdefault(name, (kind, {}))
    made = {
        name: call()
        for name, (call, given) in list(found.items())
        if _is_strategy(call) and not given
    }
    for name, strategy in made.items():
        if isinstance(strategy, logdet.LogDet):
            given = {"linearization": at, "lipschitz": 0.97, "series": logdet.LogOnePlus()}
            found[f"{name}()(...)"] = (strategy, given)
        if isinstance(strategy, operators.LinearSolve):
            given = {"linearization": at, "v": torch.ones(4, 3), "transpose": False}
            found[f"{name}()(...)"] = (strategy, {**given, "lipschitz": 0.97})
    given = {"lipschitz": 0.9, "event_size": 3}
    found["PowerSeries().truncation_error"] = (ir.PowerSeries().truncation_error, given)
    found["IResNet().with_cache"] = (ir.IResNet(block()).with_cache, {"cache_size": 0})
    found["IResNet().forward_shape"] = (ir.IResNet(block()).forward_shape, {"shape": (4, 3)})
    found["ResidualBlock().solve"] = (
        partial(block().solve, torch.randn(4, 3)),
        {"atol": 0.0, "rtol": 1e-4, "max_steps": 50, "throw": True},
    )
    found["BlockOptions.from_json"] = (
        options.BlockOptions.from_json,
        {"text": options.BlockOptions().to_json()},
    )
    return found


def _is_strategy(call: object) -> bool:
    return inspect.isclass(call) and issubclass(call, logdet.LogDet | operators.LinearSolve)


# Public names without a recipe, and the reasons.
RECORD = "a record that calls return"
BRICK = "a part of the inside, for authors of contractions and solvers"
WITHOUT = {
    **dict.fromkeys(
        ["Certificate", "Proof", "LogDetEstimate", "PSIS", "Result", "Solution", "Stats"], RECORD
    ),
    **dict.fromkeys(["Evaluation", "Solved", "Step", "Point", "Problem", "Stateless"], RECORD),
    **dict.fromkeys(["NormalizedWeight", "Factors", "Modulation", "RawWeight"], RECORD),
    "ConditionedIResNet": "made by ConditionalIResNet().condition",
    "Wrapped": "made by wrap",
    "Reconstruction": RECORD,
    "ImageTransform": "made by iresnet_image_transform",
    "BlockKeywords": "a type for annotations",
    "DENSE": "a number",
    **dict.fromkeys(
        [
            "Chain",
            "Convolution",
            "Dense",
            "Diagonal",
            "Matrices",
            "Negated",
            "Sum",
        ],
        BRICK,
    ),
    **dict.fromkeys(["Linearization", "NegatedMap", "convolve", "unpack"], BRICK),
    **dict.fromkeys(["default_rtol", "floor"], BRICK),
    **dict.fromkeys(["linearize_by_autograd", "materialize_together"], BRICK),
    "Perceptron": "a base class",
    **dict.fromkeys(["Activate", "Affine", "Conv", "Gate"], BRICK),
}


def public_names() -> dict[str, Any]:
    """Return the public objects of the package, by name; no errors and no base classes."""
    found: dict[str, Any] = {}
    for space in NAMESPACES:
        module = importlib.import_module(f"pyro_iresnet{space}")
        names = getattr(module, "__all__", ["BlockOptions", "BlockKeywords"])
        for name in names:
            value = getattr(module, name)
            wrong = inspect.isclass(value) and issubclass(value, Exception)
            if not wrong and not (inspect.isabstract(value) or value is operators.LinearMap):
                found[name] = value
    return found


def settings() -> dict[str, Any]:
    """Return wrong values of a setting, by the words of the page."""
    return {
        "-1": -1,
        "0": 0,
        "1.5": 1.5,
        "NaN": float("nan"),
        "infinity": float("inf"),
        "10^400": 10**400,
        "True": True,
        "'two'": "two",
        "tensor(3)": torch.tensor(3),
        "tensor(1.5)": torch.tensor(1.5),
        "tensor([1, 2])": torch.tensor([1, 2]),
        "tensor(True)": torch.tensor(True),
        "None": None,
        "[]": [],
        "[0]": [0],
        "{}": {},
        "object()": Nothing(),
        "a class": Anything,
    }


class Nothing:
    """An object without any use."""

    def __repr__(self) -> str:
        return "Nothing()"


class Anything:
    """A class that takes any arguments, and is of no use."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        pass

"""Settings in a state dict: a module of other settings refuses it, by the name of the setting."""

import itertools
import json
import re
import warnings
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import AffineTransform, ExpTransform
from torch.func import functional_call

from pyro_iresnet import (
    CayleyBlock,
    ConvContraction,
    DenseContraction,
    Exact,
    FixedPoint,
    InverseIResNet,
    IResNet,
    IResNetTransform,
    Newton,
    PowerSeries,
    ResidualBlock,
    conditional_iresnet,
    iresnet,
    iresnet_stack,
    wrap,
)
from pyro_iresnet.activations import ELU, Activation, LipSwish, Sine, Tanh
from pyro_iresnet.blocks import Block
from pyro_iresnet.contractions import Contraction, FiLM, SequentialContraction, SumContraction
from pyro_iresnet.coordinates import Asinh, Coordinates, DiagonalScale, TriangularScale
from pyro_iresnet.hosts.pyro import Stack
from pyro_iresnet.norms import Cholesky, Gram, Hard, PowerIteration

from .. import zoo

SUFFIX = "_extra_state"
dense = partial(DenseContraction, 2, [4])
NETWORKS = {**zoo.CONTRACTIONS, **zoo.CONDITIONAL}
FLOWS = {
    **{f"pyro_{n}": make for n, make in zoo.PYRO_TRANSFORMS.items()},
    **{f"conditional_{n}": make for n, make in zoo.CONDITIONAL_TRANSFORMS.items()},
    **{f"nflows_{n}": make for n, make in zoo.NFLOWS_TRANSFORMS.items()},
}
MAKERS = {n: make for n, make in {**NETWORKS, **FLOWS}.items() if isinstance(make(), nn.Module)}


def records(state):
    return {key: value for key, value in state.items() if key.endswith(SUFFIX)}


def without_records(state):
    return {key: value for key, value in state.items() if not key.endswith(SUFFIX)}


def saved(module):
    """Read the settings of each module in a state dict."""
    found = records(module.state_dict())
    return {k: json.loads(bytes(v.tolist()))["settings"] for k, v in found.items()}


def load_silently(module, state, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return module.load_state_dict(state, **options)


def refusal(module, state, **options):
    """Return the error of a load."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="Other settings in") as caught:
            module.load_state_dict(state, **options)
    return str(caught.value)


# ---------------------------------------------------------------------------- the same settings


@pytest.mark.parametrize("name", MAKERS)
def test_loads_own_state(name):
    module, fresh = MAKERS[name](), MAKERS[name]()
    state = module.state_dict()
    result = load_silently(fresh, state)
    assert not result.missing_keys
    assert not result.unexpected_keys
    again = fresh.state_dict()
    assert list(again) == list(state)
    assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", MAKERS)
def test_records_every_part(name):
    module = MAKERS[name]()
    parts = [n for n, m in module.named_modules() if isinstance(m, Block | Contraction)]
    state = records(module.state_dict())
    assert {f"{n}.{SUFFIX}" if n else SUFFIX for n in parts} <= set(state)
    assert all(v.dtype == torch.uint8 and v.device.type == "cpu" for v in state.values())


# ---------------------------------------------------------------------------- other settings


class Twisted(FiLM):
    """Class of a user."""


# Each row: the setting, two modules of one shape, and both values.
OTHERS = {
    "lipschitz": ("lipschitz", partial(dense, lipschitz=0.9), dense, "0.9", "0.97"),
    "norm": ("norm", partial(dense, norm=Gram()), dense, "Gram", "Cholesky"),
    "damping": ("norm.damping", partial(dense, norm=Cholesky(1.0)), dense, "1", "0.3"),
    "inner_norm": (
        "norm.norm",
        partial(dense, norm=Hard(Gram())),
        partial(dense, norm=Hard(PowerIteration())),
        "Gram",
        "PowerIteration",
    ),
    "squarings": (
        "norm.norm.squarings",
        partial(dense, norm=Hard(Gram(4))),
        partial(dense, norm=Hard(Gram(5))),
        "4",
        "5",
    ),
    "activation": (
        "activation",
        partial(dense, activation=ELU),
        partial(dense, activation=Tanh),
        "ELU",
        "Tanh",
    ),
    "frequencies": (
        "activation.frequencies",
        partial(dense, activation=partial(Sine, (1.0, 3.0))),
        partial(dense, activation=partial(Sine, (1.0, 2.0))),
        "1, 3",
        "1, 2",
    ),
    "padding": (
        "padding",
        partial(ConvContraction, (2, 3, 4), [3]),
        partial(ConvContraction, (2, 3, 4), [3], padding="circular"),
        "zeros",
        "circular",
    ),
    "conditioner": (
        "conditioner",
        partial(dense, context_dim=3),
        partial(dense, context_dim=3, conditioner=Twisted),
        "FiLM",
        "Twisted",
    ),
    "wrapped": (
        "module",
        lambda: wrap(nn.Tanh(), lipschitz=0.9),
        lambda: wrap(nn.Sigmoid(), lipschitz=0.9),
        "Tanh",
        "Sigmoid",
    ),
    "composed": (
        "kind",
        lambda: SumContraction(dense(lipschitz=0.4), dense(lipschitz=0.4)),
        lambda: SequentialContraction(dense(lipschitz=0.4), dense(lipschitz=0.4)),
        "SumContraction",
        "SequentialContraction",
    ),
    "block": (
        "kind",
        lambda: ResidualBlock(dense()),
        lambda: CayleyBlock(dense()),
        "ResidualBlock",
        "CayleyBlock",
    ),
    "coordinates": (
        "coordinates",
        lambda: ResidualBlock(dense(), coordinates=Asinh()),
        lambda: ResidualBlock(dense(), coordinates=DiagonalScale()),
        "Asinh",
        "DiagonalScale",
    ),
    "coordinates_in_turn": (
        "coordinates",
        lambda: ResidualBlock(dense(), coordinates=(Asinh(), DiagonalScale())),
        lambda: ResidualBlock(dense(), coordinates=(DiagonalScale(), Asinh())),
        "Asinh, DiagonalScale",
        "DiagonalScale, Asinh",
    ),
    "direction": (
        "direction",
        lambda: IResNet(ResidualBlock(dense())),
        lambda: InverseIResNet(ResidualBlock(dense())),
        "forward",
        "inverse",
    ),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_refuses_other_setting(name, strict):
    setting, make, other, ours, theirs = OTHERS[name]
    for first, second, a, b in ((make, other, ours, theirs), (other, make, theirs, ours)):
        message = refusal(second(), first().state_dict(), strict=strict)
        assert f"{setting} is {a} in the state dict and {b} here" in message
        assert "_extra_state" in message
        assert "Missing" not in message
        assert "Unexpected" not in message


@pytest.mark.parametrize("name", NETWORKS)
def test_refuses_other_constant(name):
    network, other = NETWORKS[name](), NETWORKS[name]()
    other.lipschitz = 0.123
    message = refusal(other, network.state_dict())
    assert f"lipschitz is {network.lipschitz} in the state dict and 0.123 here" in message


@pytest.mark.parametrize("name", zoo.NORMS)
def test_refuses_other_norm(name):
    state = dense(norm=zoo.NORMS[name]).state_dict()
    for other, norm in zoo.NORMS.items():
        if other == name:
            load_silently(dense(norm=norm), state)
        else:
            assert re.search(r"\bnorm[a-z.]* is ", refusal(dense(norm=norm), state))


@pytest.mark.parametrize("name", zoo.ACTIVATIONS)
def test_refuses_other_activation(name):
    module = dense(activation=zoo.ACTIVATIONS[name])
    for other, activation in zoo.ACTIVATIONS.items():
        fresh = dense(activation=activation)
        if {name, other} <= {"lipswish", "lipswish_sharp"} or name == other:
            # A start of a learned parameter is no setting.
            load_silently(fresh, module.state_dict())
        else:
            assert re.search(r"activation is ", refusal(fresh, module.state_dict()))


def test_lists_shapes_beside_settings():
    message = refusal(dense(), DenseContraction(2, [5], lipschitz=0.9).state_dict())
    assert "lipschitz is 0.9" in message
    # Three of layers, and the frequencies.
    assert message.count("size mismatch") == 4


def test_lists_each_module():
    state = iresnet_stack(2, 3, [4], lipschitz=0.9, block="cayley").state_dict()
    message = refusal(iresnet_stack(2, 3, [4]), state)
    for i in (1, 3, 5):
        assert f"{i}.block (ResidualBlock): kind is CayleyBlock" in message
        assert f"{i}.block.contraction (DenseContraction): lipschitz is 0.9" in message
    # The remedy is said once.
    assert message.count("Build the flow") == 1


def test_names_strategy_alone():
    message = refusal(dense(norm=Gram()), dense().state_dict())
    assert "norm.damping" not in message
    assert "norm.squarings" not in message


@pytest.mark.parametrize("activation", [partial(LipSwish, 5.0), Sine])
def test_ignores_learned_value(activation):
    module = dense(activation=activation)
    before = saved(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert saved(module) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"coordinates": DiagonalScale(0.1)}, {"coordinates": DiagonalScale(0.7)}),
        ({"coordinates": TriangularScale(0.1)}, {"coordinates": TriangularScale(0.7)}),
        ({"coordinates": Asinh(2.0)}, {"coordinates": (Asinh(5.0),)}),
        ({"logdet": Exact()}, {"logdet": PowerSeries(3)}),
        ({"solver": Newton()}, {"solver": FixedPoint()}),
    ],
)
def test_ignores_starts_and_solvers(one, other):
    block, fresh = ResidualBlock(dense(), **one), ResidualBlock(dense(), **other)
    load_silently(fresh, block.state_dict())
    x = torch.randn(5, 2)
    assert torch.equal(fresh(x), block(x))


def test_ignores_type_of_number():
    load_silently(dense(norm=Cholesky(2)), dense(norm=Cholesky(2.0)).state_dict())
    load_silently(dense(lipschitz=0.1 + 0.2), dense(lipschitz=0.3).state_dict())


def test_inverse_refuses_plain():
    plain, inverse = (Stack([kind(ResidualBlock(dense()))]) for kind in (IResNet, InverseIResNet))
    assert "0 (InverseIResNet): direction is forward" in refusal(inverse, plain.state_dict())
    assert "0 (IResNet): direction is inverse" in refusal(plain, inverse.state_dict())


def test_hosts_load_each_other():
    block = ResidualBlock(dense(context_dim=3))
    state = IResNetTransform.from_block(block).state_dict()
    conditional = conditional_iresnet(2, 3, [4], coordinates=None)
    load_silently(conditional, state)
    load_silently(conditional.condition(torch.randn(3)), state)


# ---------------------------------------------------------------------------- no record


def test_warns_without_record():
    module, fresh = iresnet_stack(2, 2, [4]), iresnet_stack(2, 2, [4])
    old = without_records(module.state_dict())
    with pytest.warns(UserWarning, match="holds no settings") as caught:
        result = fresh.load_state_dict(old)
    assert not result.missing_keys
    # Python shows a warning of one text once.
    assert len({str(w.message) for w in caught}) == 1
    again = fresh.state_dict()
    assert all(torch.equal(again[key], value) for key, value in old.items())


def test_remedy_loads():
    fresh = dense(lipschitz=0.9)
    with pytest.warns(UserWarning, match="holds no settings"):
        fresh.load_state_dict(without_records(dense().state_dict()))
    assert fresh.lipschitz == 0.9


def test_partial_load_is_silent():
    stack = iresnet_stack(2, 2, [4])
    state = {k: v for k, v in stack.state_dict().items() if k.startswith("0.")}
    load_silently(
        iresnet_stack(2, 2, [4]), {**state, "other.weight": state["0.shift"]}, strict=False
    )
    load_silently(dense(), {"other.weight": torch.ones(2)}, strict=False)


def test_reports_missing_tensors():
    state = dense().state_dict()
    del state["layers.0.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "layers.0.weight"'):
        dense().load_state_dict(state)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.float() * 0.9,
        lambda v: v.flip(0),
        lambda v: v * 0,
        lambda v: v[:-3],
        lambda v: v.double() * torch.nan,
        lambda v: v.double() - 300,
        lambda v: torch.frombuffer(bytearray(b"[1, 2]"), dtype=torch.uint8),
        lambda v: torch.frombuffer(bytearray(b'{"format": 1}'), dtype=torch.uint8),
        lambda v: v.to("meta"),
        lambda v: "text",
    ],
)
def test_warns_of_unreadable_record(change):
    state = dense().state_dict()
    with pytest.warns(UserWarning, match="holds no settings"):
        dense().load_state_dict({**state, SUFFIX: change(state[SUFFIX])})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_reads_record_of_any_dtype(dtype):
    state = {key: value.to(dtype) for key, value in dense(lipschitz=0.9).state_dict().items()}
    load_silently(dense(lipschitz=0.9), state)
    assert "lipschitz is 0.9" in refusal(dense(), state)


def test_refuses_unknown_format():
    later = json.dumps({"format": 2, "values": []}).encode()
    state = {**dense().state_dict(), SUFFIX: torch.tensor(list(later))}
    with pytest.raises(RuntimeError, match="in format 1; got format 2"):
        dense().load_state_dict(state)


# ---------------------------------------------------------------------------- classes of a user


class Half(Contraction):
    """Network whose settings are set late."""

    def __init__(self, lipschitz, power=1.0):
        super().__init__()
        self.event_shape, self.context_dim, self.power = (2,), None, power
        self.shift = nn.Parameter(torch.zeros(2))
        self.lipschitz = lipschitz

    def forward(self, x, context=None):
        return self.lipschitz * (x + self.shift).sin()

    def lipschitz_bound(self):
        return self.shift.new_tensor(self.lipschitz)


class Other(Half):
    pass


class Powered(Half):
    def settings(self):
        return {**super().settings(), "power": self.power}


class Stateful(Half):
    def get_extra_state(self):
        return {"power": self.power}

    def set_extra_state(self, state):
        self.power = state["power"]


def test_own_contraction():
    state = Half(0.5).state_dict()
    load_silently(Half(0.5), state)
    assert "lipschitz is 0.5 in the state dict and 0.6 here" in refusal(Half(0.6), state)
    assert "kind is Half in the state dict and Other here" in refusal(Other(0.5), state)


def test_own_setting():
    assert "power is 1 " in refusal(Powered(0.5, 2.0), Powered(0.5, 1.0).state_dict())
    load_silently(Powered(0.5, 2.0), Powered(0.5, 2.0).state_dict())


def test_setting_of_newer_version():
    older, newer = type("Net", (Half,), {}), type("Net", (Powered,), {})
    saved_state = older(0.5).state_dict()
    with pytest.warns(UserWarning, match="did not save every setting.* Not compared: power"):
        newer(0.5).load_state_dict(saved_state)
    message = refusal(older(0.5), newer(0.5).state_dict())
    assert "power is 1 in the state dict and absent here" in message


def test_own_extra_state_stays():
    module, fresh = Stateful(0.5, power=3.0), Stateful(0.6)
    state = module.state_dict()
    assert state[SUFFIX] == {"power": 3.0}
    load_silently(fresh, state)
    assert fresh.power == 3.0


def test_saves_unfinished_network():
    class Unfinished(Half):
        def __init__(self):
            nn.Module.__init__(self)

    assert saved(Unfinished())[SUFFIX] == {"kind": "Unfinished", "lipschitz": None}


class Mixed(Activation):
    """Activation of a user: a function, numbers and a part, and private or learned attributes."""

    def __init__(self, function=torch.sin, slope=1.0, inner=Tanh):
        super().__init__()
        self.function, self.slope, self.inner = function, slope, inner()
        self.gain = nn.Parameter(torch.ones(()))
        self._scratch = object()

    def forward(self, x):
        return self.value_and_slope(x)[0]

    def value_and_slope(self, x):
        value, slope = self.inner.value_and_slope(x)
        return self.slope * value, self.slope * slope


def test_own_activation():
    module = dense(activation=Mixed)
    load_silently(dense(activation=Mixed), module.state_dict())
    assert "<" not in str(saved(module))
    for options, words in (
        ({"function": torch.tanh}, "activation.function is sin in the state dict and tanh here"),
        ({"slope": 0.5}, "activation.slope is 1 in the state dict and 0.5 here"),
        ({"inner": ELU}, "activation.inner is Tanh in the state dict and ELU here"),
    ):
        assert words in refusal(dense(activation=partial(Mixed, **options)), module.state_dict())


def test_activations_that_differ():
    def alternating(*frequencies):
        turns = iter(frequencies)
        return DenseContraction(2, [4, 4], activation=lambda: Sine((0.5, next(turns))))

    state = alternating(1.0, 2.0).state_dict()
    load_silently(alternating(1.0, 2.0), state)
    message = refusal(alternating(1.0, 3.0), state)
    assert "activation.1.frequencies is 0.5, 2 in the state dict and 0.5, 3 here" in message


@dataclass(frozen=True)
class Shifted(Coordinates):
    by: float = 1.0
    start: float = field(default=1.0, metadata={"start_only": True})

    def build(self, event_shape):
        made = DiagonalScale().build(event_shape)
        made.strategy = self
        return made


def test_own_coordinates():
    def block(coordinates):
        return ResidualBlock(dense(), coordinates=coordinates)

    state = block(Shifted(1.0, start=1.0)).state_dict()
    load_silently(block(Shifted(1.0, start=2.0)), state)
    message = refusal(block(Shifted(2.0)), state)
    assert "coordinates.by is 1 in the state dict and 2 here" in message


# ---------------------------------------------------------------------------- ways to save


def test_functional_call():
    block = ResidualBlock(dense(), coordinates=DiagonalScale())
    state, x = block.state_dict(), torch.randn(5, 2)
    doubled = {k: v if k.endswith(SUFFIX) else 2 * v for k, v in state.items()}
    before = block(x)
    moved = functional_call(block, doubled, (x,))
    assert not torch.allclose(moved, before)
    assert torch.equal(functional_call(block, state, (x,)), before)
    assert torch.equal(block(x), before)
    assert list(block.state_dict()) == list(state)


@pytest.mark.parametrize("wrapper", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_wrappers(wrapper):
    state = wrapper(ResidualBlock(dense())).state_dict()
    load_silently(wrapper(ResidualBlock(dense())), state)
    other = wrapper(ResidualBlock(dense(lipschitz=0.9)))
    assert "module.contraction (DenseContraction): lipschitz is 0.97" in refusal(other, state)


def test_file(tmp_path):
    flow = iresnet_stack(2, 2, [4])
    torch.save({"state_dict": flow.state_dict(prefix="flow.")}, tmp_path / "flow.pt")
    state = torch.load(tmp_path / "flow.pt", weights_only=True)["state_dict"]
    holder, other = nn.Module(), nn.Module()
    holder.flow, other.flow = iresnet_stack(2, 2, [4]), iresnet_stack(2, 2, [4], norm=Gram())
    load_silently(holder, state)
    assert "flow.1.block.contraction (DenseContraction): norm is Cholesky" in refusal(other, state)


def test_assignment_from_meta():
    state = ResidualBlock(dense()).state_dict()
    with torch.device("meta"):
        fresh, other = ResidualBlock(dense()), ResidualBlock(dense(lipschitz=0.9))
        assert all(v.device.type == "cpu" for v in records(fresh.state_dict()).values())
    load_silently(fresh, state, assign=True)
    assert fresh(torch.randn(5, 2)).device.type == "cpu"
    assert "lipschitz is 0.97" in refusal(other, state, assign=True)


def test_same_bytes_in_each_save():
    module = ResidualBlock(dense(norm=Hard(Gram())))
    first, second = records(module.state_dict()), records(module.state_dict())
    assert all(torch.equal(second[key], value) for key, value in first.items())
    # A change of one state dict leaves the next as it is.
    for value in first.values():
        value.zero_()
    assert all(bool(v.any()) for v in records(module.state_dict()).values())


STACKS = {
    "modules": lambda t: Stack([t]),
    "inverse": lambda t: Stack([t.inv]),
    "foreign": lambda t: Stack([AffineTransform(0.0, 2.0), t]),
    "other foreign": lambda t: Stack([ExpTransform(), t]),
    "foreign behind": lambda t: Stack([t, AffineTransform(0.0, 2.0)]),
}


@pytest.mark.parametrize(("saved", "here"), itertools.permutations(STACKS, 2))
def test_refuses_other_parts_of_stack(saved, here):
    state = STACKS[saved](iresnet(2, [4])).state_dict()
    with pytest.raises(RuntimeError, match=r"(inverted parts|parts without modules) is"):
        STACKS[here](iresnet(2, [4])).load_state_dict(state)


@pytest.mark.parametrize("other", [nn.ReLU, nn.Sigmoid])
def test_refuses_other_parts_of_network(other):
    def block(kind, event_dim=1):
        net = nn.Sequential(nn.Linear(2, 2), kind())
        return ResidualBlock(wrap(net, lipschitz=0.9, event_dim=event_dim))

    state = block(nn.Tanh).state_dict()
    block(nn.Tanh).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Tanh in the state dict and .*" + other.__name__):
        block(other).load_state_dict(state)
    with pytest.raises(RuntimeError, match="event_dim is 1 in the state dict and 3 here"):
        block(nn.Tanh, 3).load_state_dict(state)

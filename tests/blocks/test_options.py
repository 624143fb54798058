"""Options of a block: one record that builders take, store and write as JSON."""

import copy
import json
import pickle
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from pyro_iresnet import (
    Anderson,
    AutoIResNet,
    ByMode,
    CayleyBlock,
    Exact,
    FixedPoint,
    IResNetTransform,
    Newton,
    PowerSeries,
    ResidualBlock,
    Roulette,
    conditional_iresnet,
    conditional_iresnet_flow,
    conditional_iresnet_stack,
    iresnet,
    iresnet_flow,
    iresnet_stack,
)
from pyro_iresnet.activations import Activation, LipSwish, Tanh
from pyro_iresnet.blocks import Block
from pyro_iresnet.coordinates import Asinh, DiagonalScale
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.logdet import (
    Adaptive,
    ControlVariate,
    ConvergedSeries,
    Geometric,
    LogDet,
    Truncation,
)
from pyro_iresnet.norms import Gram, Hard, SingularValue
from pyro_iresnet.operators import DenseSolve
from pyro_iresnet.options import BlockOptions
from pyro_iresnet.solvers import AffinePreconditioner

from .. import zoo
from ..guides.models import banana


def guide(hidden_dims=(4,), **options):
    made = AutoIResNet(banana, 3, hidden_dims=hidden_dims, init="plain", **options)
    made()
    return made


# Each builder with few small layers, called with options alone.
BUILDERS = {
    "iresnet": partial(iresnet, 2, [4]),
    "conditional_iresnet": partial(conditional_iresnet, 2, 3, [4]),
    "iresnet_stack": partial(iresnet_stack, 2, 3, [4]),
    "conditional_iresnet_stack": partial(conditional_iresnet_stack, 2, 3, 3, [4]),
    "IResNetTransform": partial(IResNetTransform, 2, [4]),
    "conditional_IResNetTransform": partial(IResNetTransform, 2, [4], 3),
    "iresnet_flow": partial(iresnet_flow, 2, 3, hidden_features=[4]),
    "conditional_iresnet_flow": partial(conditional_iresnet_flow, 2, 3, 3, hidden_features=[4]),
    "AutoIResNet": guide,
}
SINGLE = ("iresnet", "conditional_iresnet", "IResNetTransform", "conditional_IResNetTransform")
STACKED = [name for name in BUILDERS if name not in SINGLE]


class Arctan(Activation):
    """Activation of a user, with a setting."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return self.slope * x.atan()

    def value_and_slope(self, x):
        return self.slope * x.atan(), self.slope / (1 + x**2)


@dataclass(frozen=True)
class Doubled(Gram):
    """Norm of a user, made of another norm."""

    inner: Gram = Gram(2)  # noqa: RUF009

    def __call__(self, weight):
        return 2 * self.inner(weight)


@dataclass(frozen=True)
class Wide(DiagonalScale):
    """Coordinates of a user."""

    spread: float = 2.0


@dataclass(frozen=True)
class Half(Truncation):
    """Truncation of a user."""

    exact_terms: int = 4

    def survival(self, term, magnitude):
        return torch.full_like(magnitude, 0.5)


@dataclass(frozen=True)
class FirstSample(ControlVariate):
    """Control variate of a user."""

    def matrix(self, linearization):
        return linearization.as_matrix()[0]


@dataclass(frozen=True)
class Patient(FixedPoint):
    """Solver of a user, with a setting that is a sequence."""

    factors: tuple = (1.0, 2.0)


@dataclass(frozen=True)
class Trace(LogDet):
    """Estimator of a user."""

    scale: float = 1.0

    def __call__(self, linearization, *, lipschitz, series=None):
        return self.scale * linearization.as_matrix().diagonal(dim1=-2, dim2=-1).sum(-1)


# A final class has no subclass, so a block of a user stands beside it.
class Doubling(Block):
    """Block of a user, ``y = c x``."""

    def __init__(self, contraction, *, factor=2.0, **options):
        super().__init__(contraction, **options)
        self.factor = factor

    def evaluate(self, x, context=None):
        raise NotImplementedError

    def evaluate_inverse(self, y, context=None, *, x0=None):
        raise NotImplementedError


class Outer:
    """A class around a class, for its qualified name."""

    @dataclass(frozen=True)
    class Nested(Gram):
        """Norm with a dot in its qualified name."""


RECORDS = {
    "default": {},
    **{f"norm_{n}": {"norm": s} for n, s in zoo.NORMS.items()},
    **{
        f"activation_{n}": {"activation": a, "hidden_dims": (8,)}
        for n, a in zoo.ACTIVATIONS.items()
    },
    **{f"coordinates_{n}": options for n, options in zoo.COORDINATES.items()},
    "coordinates_none": {"coordinates": None},
    "coordinates_list": {"coordinates": [Asinh(2.0), DiagonalScale(0.1)]},
    **{f"solver_{n}": {"solver": s} for n, s in zoo.SOLVERS.items()},
    "solver_dense": {"solver": Newton(linear_solve=DenseSolve(), rtol=1e-3, max_steps=7)},
    "solver_points": {"solver": Anderson(preconditioner=AffinePreconditioner(points=8))},
    "exact": {"logdet": Exact()},
    "series": {"logdet": PowerSeries(terms=3, probes=2, seed=5)},
    "converged": {"logdet": ConvergedSeries(1e-5)},
    "roulette": {"logdet": Roulette(Adaptive(0.5, exact_terms=3), probes=2)},
    "geometric": {"logdet": Roulette(Geometric(p=0.25), control_variate=None)},
    "by_mode": {"logdet": ByMode(train=Roulette(), evaluate=ByMode(Exact(), PowerSeries(2)))},
    "cayley": {"block": "cayley", "lipschitz": 0.5},
    "block_class": {"block": CayleyBlock},
    "own_block": {"block": Doubling},
    "own_block_partial": {"block": partial(Doubling, factor=3.0)},
    "own_activation": {"activation": Arctan},
    "own_activation_partial": {"activation": partial(Arctan, 0.5)},
    "own_norm": {"norm": Doubled(inner=Gram(3))},
    "own_norm_inside": {"norm": Hard(Doubled())},
    "own_coordinates": {"coordinates": (Wide(3.0), Asinh())},
    "own_truncation": {"logdet": Roulette(Half(2), control_variate=FirstSample())},
    "own_solver": {"solver": Patient(factors=(3.0,))},
    "own_logdet": {"logdet": Trace(2.0)},
    "nested_name": {"norm": Outer.Nested()},
}


def through_json(record):
    """Write a record as JSON text and read it."""
    text = record.to_json()
    json.loads(text)
    return BlockOptions.from_json(text)


def blocks_of(flow):
    return [m for m in flow.modules() if isinstance(m, Block)]


def check_same(block, other):
    """Compare two blocks that were built after the same seed."""
    assert type(block) is type(other)
    assert repr(block) == repr(other)
    state, again = block.state_dict(), other.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(v, again[k]) for k, v in state.items())
    settings = [
        [{k: v for k, v in vars(m).items() if k[0] != "_" and k != "options"} for m in b.modules()]
        for b in (block, other)
    ]
    for ours, theirs in zip(*settings, strict=True):
        assert ours == theirs


def built(record, dim, context_dim=None):
    """Build a block after a fixed seed."""
    torch.manual_seed(3)
    return record.build(dim, context_dim)


# ---------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("name", RECORDS)
def test_json_round_trip(name):
    record = BlockOptions(**{"hidden_dims": [4], **RECORDS[name]})
    again = through_json(record)
    check_same(built(record, 3), built(again, 3))
    assert repr(again) == repr(record)
    assert through_json(again).to_json() == record.to_json()
    # Two partials of one class differ.
    assert "partial" in repr(record) or again == record


@pytest.mark.parametrize("block", ["residual", "cayley"])
@pytest.mark.parametrize("name", BUILDERS)
def test_builder_stores_record(name, block):
    options = {
        "block": block,
        "lipschitz": 0.8,
        "activation": partial(LipSwish, beta=2.0),
        "norm": Hard(SingularValue()),
        "coordinates": (Asinh(2.0), DiagonalScale(0.1)),
        "logdet": Roulette(Adaptive(0.5)),
        "solver": Newton(rtol=1e-3),
    }
    flow = BUILDERS[name](**options)
    blocks = blocks_of(flow)
    assert len(blocks) == (1 if name in SINGLE else 3)
    for found in blocks:
        assert found.options == BlockOptions(**options, hidden_dims=(4,))
        again = through_json(found.options)
        twin = built(again, 2, found.context_dim)
        check_same(built(found.options, 2, found.context_dim), twin)
        assert repr(twin.options) == repr(found.options)
        twin.load_state_dict(found.state_dict())
        x, context = torch.randn(3, 2), None
        if found.context_dim is not None:
            context = torch.randn(3, 3)
        assert torch.equal(twin.to(x)(x, context), found.to(x)(x, context))


@pytest.mark.parametrize("name", BUILDERS)
def test_builder_default(name):
    flow = BUILDERS[name]()
    for block in blocks_of(flow):
        expected = BlockOptions(hidden_dims=[4])
        if name == "AutoIResNet":
            expected = BlockOptions(hidden_dims=[4], activation=LipSwish, logdet=Exact())
        assert block.options == expected == through_json(block.options)
        assert block.options.hidden_dims == (4,)
    if name in SINGLE:
        assert flow.options is flow.block.options


@pytest.mark.parametrize("name", BUILDERS)
def test_builder_takes_record(name):
    record = BlockOptions(block="cayley", lipschitz=0.5, coordinates=None)
    for block in blocks_of(BUILDERS[name](options=record)):
        assert type(block) is CayleyBlock
        assert (block.options.lipschitz, block.options.hidden_dims) == (0.5, (4,))
        assert block.coordinates is None
    # A keyword wins over the record.
    for block in blocks_of(BUILDERS[name](options=record, lipschitz=0.75)):
        assert block.options.lipschitz == block.contraction.lipschitz == 0.75


def test_record_decides_widths():
    record = BlockOptions(hidden_dims=[7])
    flows = [
        iresnet(2, options=record),
        conditional_iresnet_stack(2, 3, 2, options=record),
        IResNetTransform(2, options=record),
        iresnet_flow(2, 2, options=record),
        guide(None, options=record),
    ]
    for flow in flows:
        assert all(b.contraction.layers[0].out_features == 7 for b in blocks_of(flow))


@pytest.mark.parametrize("name", STACKED)
def test_records_take_turns(name):
    records = [BlockOptions(lipschitz=0.5), BlockOptions(block="cayley")]
    blocks = blocks_of(BUILDERS[name](options=records, norm=Gram()))
    assert [type(b) for b in blocks] == [ResidualBlock, CayleyBlock, ResidualBlock]
    assert [b.options.lipschitz for b in blocks] == [0.5, 0.97, 0.5]
    assert all(b.options.norm == Gram() for b in blocks)
    with pytest.raises(ArgumentError, match=r"options .* got none"):
        BUILDERS[name](options=[])
    with pytest.raises(ArgumentTypeError, match="options to be a BlockOptions"):
        BUILDERS[name](options=[BlockOptions(), 3])


@pytest.mark.parametrize("name", SINGLE)
def test_one_record_for_one_block(name):
    with pytest.raises(ArgumentTypeError, match="options to be a BlockOptions"):
        BUILDERS[name](options=[BlockOptions()])


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("option", ["activation", "block"])
def test_lambda_has_no_json(option):
    value = {"activation": lambda: Tanh(), "block": lambda g, **o: ResidualBlock(g, **o)}[option]
    for record in (
        BlockOptions(**{option: value}),
        iresnet(2, [4], **{option: value}).options,
        iresnet_flow(2, 2, hidden_features=4, **{option: value})._transform._transforms[1].options,
    ):
        with pytest.raises(ArgumentError, match=f"Expected {option} to be a class.*lambda"):
            record.to_json()


def test_no_json_inside():
    @dataclass(frozen=True)
    class Holds(Gram):
        function: object = print

    for options in ({"norm": Holds()}, {"norm": Hard(Holds())}):
        with pytest.raises(ArgumentError, match="Expected norm to be a class"):
            BlockOptions(**options).to_json()


@pytest.mark.parametrize("name", BUILDERS)
def test_suggests_near_option(name):
    for wrong, near in (
        ("lipshitz", "lipschitz"),
        ("activaton", "activation"),
        ("log_det", "logdet"),
        ("coordinate", "coordinates"),
        ("solvers", "solver"),
        ("option", "options"),
    ):
        with pytest.raises(ArgumentTypeError, match=f"got '{wrong}'. Did you mean '{near}'"):
            BUILDERS[name](**{wrong: None})
    with pytest.raises(ArgumentTypeError, match=r"got 'xyz'\.$"):
        BUILDERS[name](xyz=1)


NEAR = {
    "iresnet": (partial(iresnet, 2), "hidden_dim", "hidden_dims"),
    "conditional_iresnet": (partial(conditional_iresnet, 2, 3), "hidden_dim", "hidden_dims"),
    "iresnet_stack": (partial(iresnet_stack, 2), "num_block", "num_blocks"),
    "conditional_stack": (partial(conditional_iresnet_stack, 2, 3), "num_block", "num_blocks"),
    "IResNetTransform": (partial(IResNetTransform, 2), "context_feature", "context_features"),
    "iresnet_flow": (partial(iresnet_flow, 2), "hidden_feature", "hidden_features"),
    "conditional_flow": (
        partial(conditional_iresnet_flow, 2, 3),
        "embeding_net",
        "embedding_net",
    ),
    "AutoIResNet": (partial(AutoIResNet, banana), "path_gradient", "path_gradients"),
}


@pytest.mark.parametrize("name", NEAR)
def test_suggests_near_argument(name):
    build, wrong, near = NEAR[name]
    with pytest.raises(TypeError, match=f"'{wrong}'. Did you mean '{near}'"):
        build(**{wrong: 3})


WRONG = {
    "lipschitz": ("0.9", "Expected lipschitz to be a number"),
    "activation": ("elu", "Expected activation to be a class"),
    "norm": (Gram, "Expected norm to be an object .* got the class Gram. Call it"),
    "coordinates": ("asinh", "Expected coordinates to be a Coordinates"),
    "logdet": ("exact", "Expected logdet to be a LogDet"),
    "solver": (5, "Expected solver to be a Solver"),
    "block": (5, "Expected block to be 'residual', 'cayley' or a callable"),
    "options": ({"lipschitz": 0.9}, "Expected options to be a BlockOptions"),
}


@pytest.mark.parametrize("option", WRONG)
@pytest.mark.parametrize("name", BUILDERS)
def test_refuses_wrong_type(name, option):
    value, words = WRONG[option]
    with pytest.raises(ArgumentTypeError, match=words):
        BUILDERS[name](**{option: value})


@pytest.mark.parametrize("name", BUILDERS)
def test_refuses_wrong_value(name):
    with pytest.raises(ArgumentError, match=r"lipschitz in \(0, 1\); got 1.5"):
        BUILDERS[name](lipschitz=1.5)
    with pytest.raises(ArgumentError, match=r"block to be one of 'residual', 'cayley'.*'cayle'"):
        BUILDERS[name](block="cayle")


def test_refuses_widths():
    for build, name in (
        (iresnet, "hidden_dims"),
        (BlockOptions, "hidden_dims"),
        (iresnet_stack, "hidden_dims"),
        (IResNetTransform, "hidden_features"),
        (iresnet_flow, "hidden_features"),
        (partial(AutoIResNet, banana), "hidden_dims"),
    ):
        arguments = [] if build is BlockOptions or isinstance(build, partial) else [2]
        with pytest.raises(ArgumentTypeError, match=f"Expected {name} to be"):
            build(*arguments, **{name: "64"})
        with pytest.raises(ArgumentError, match=rf"Expected {name}\[1\] to be at least 1"):
            build(*arguments, **{name: [4, 0]})


FOREIGN = [
    "",
    "{",
    "3",
    "[]",
    "null",
    '{"norm": {"class": "Unknown"}}',
    '{"norm": {"squarings": 3}}',
    '{"norm": {"class": "torch.nn.modules.linear.Linear"}}',
    '{"norm": {"object": "os.system", "settings": {"command": "true"}}}',
]


@pytest.mark.parametrize("text", FOREIGN)
def test_refuses_foreign_json(text):
    with pytest.raises(ArgumentError, match="Expected"):
        BlockOptions.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"breadth": 3}',
        '{"norm": {"object": "Gram", "settings": {"breadth": 3}}}',
        '{"norm": {"class": "LipSwish"}}',
        '{"norm": 3}',
    ],
)
def test_refuses_other_record(text):
    with pytest.raises((ArgumentError, ArgumentTypeError), match="Expected"):
        BlockOptions.from_json(text)


# ---------------------------------------------------------------------------- repr and copies


def test_repr_shows_options():
    options = {"block": "cayley", "activation": partial(LipSwish, beta=5.0), "lipschitz": 0.5}
    shown = (
        "BlockOptions(block='cayley', hidden_dims=(4,), lipschitz=0.5, "
        "activation=partial(LipSwish, beta=5.0), "
        "norm=Cholesky(damping=0.3, norm=Gram(squarings=6)), "
        "coordinates=DiagonalScale(spread=0.5), logdet=None, solver=None)"
    )
    for name in SINGLE:
        assert shown in repr(BUILDERS[name](**options))
    assert repr(iresnet_stack(2, 3, [4], **options)).count(shown) == 3
    assert "activation=Tanh, " in repr(BlockOptions(activation=Tanh))
    assert "solver=" in repr(zoo.block())


def test_repr_of_partial():
    for made in (partial(Arctan, 0.5), partial(Arctan, slope=0.5)):
        assert "activation=partial(Arctan, slope=0.5), " in repr(BlockOptions(activation=made))


def test_lambda_copies_and_pickles():
    options = {"hidden_dims": [4], "activation": lambda: Tanh()}
    for transform in (iresnet(2, **options), iresnet_stack(2, 2, **options)):
        x = torch.randn(20, 2)
        y = transform(x)
        for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
            assert torch.equal(twin(x), y)
    record = BlockOptions(activation=(made := lambda: Tanh()))
    assert copy.copy(record) == record
    twin = copy.deepcopy(iresnet(2, [4], options=record))
    assert twin.options.activation is made
    lost = pickle.loads(pickle.dumps(twin))
    assert lost.options is None
    assert "logdet=" in repr(lost.block)


@pytest.mark.parametrize("name", RECORDS)
def test_pickles(name):
    record = BlockOptions(**RECORDS[name])
    again = pickle.loads(pickle.dumps(record))
    assert repr(again) == repr(record)
    assert copy.deepcopy(record) is record
    assert copy.copy(record) == record
    assert "partial" in repr(record) or hash(again) == hash(record)


def test_plain_numbers():
    """Take numbers of other libraries, and write plain ones."""
    numpy = pytest.importorskip("numpy")
    for number in (numpy.float64(0.5), numpy.float32(0.5), torch.tensor(0.5).item()):
        record = BlockOptions(lipschitz=number, hidden_dims=[numpy.int64(4)])
        assert json.loads(record.to_json())["lipschitz"] == 0.5
        assert through_json(record).lipschitz == 0.5


@dataclass(frozen=True)
class Awkward(Gram):
    """Norm whose fields have the names that JSON uses itself."""

    kind: str = "fast"
    block: Gram = Gram(2)  # noqa: RUF009
    activation: Gram = Gram(3)  # noqa: RUF009


@pytest.mark.parametrize("field", ["kind", "block", "activation"])
def test_field_names_of_user(field):
    value = "slow" if field == "kind" else Gram(5)
    record = BlockOptions(norm=Awkward(**{"kind": "fast", field: value}))
    assert getattr(through_json(record).norm, field) == value


def test_record_is_frozen():
    record = BlockOptions(hidden_dims=[4], coordinates=[Asinh()])
    with pytest.raises(AttributeError):
        record.lipschitz = 0.5
    assert record == BlockOptions(hidden_dims=(4,), coordinates=(Asinh(),))
    assert {record: 1}[through_json(record)] == 1
    assert isinstance(iresnet(2, options=record).block, nn.Module)


@pytest.mark.parametrize("name", ["logdet", "solver", "coordinates"])
def test_refuses_hidden_option(name):
    value = {"logdet": Exact(), "solver": Newton(), "coordinates": Asinh()}[name]
    with pytest.raises(ArgumentError, match=f"Expected {name} as an option beside block"):
        BlockOptions(block=partial(CayleyBlock, **{name: value}))

"""Signatures of arguments and of the data behind a model: a guide looks again when they change."""

import copy
import pickle
import re
from collections import deque, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from functools import partial
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule

from pyro_iresnet import AutoIResNet
from pyro_iresnet.errors import ArgumentError
from pyro_iresnet.hosts.pyro.guide.signature import signature, signature_behind

SEEN = torch.tensor([True, True, False, True])


class Size(Enum):
    SMALL = 5
    LARGE = 7


class Count(IntEnum):
    SMALL = 5
    LARGE = 7


class Own:
    def __init__(self, n):
        self.n = n

    def model(self):
        rows(self.n)


Pair = namedtuple("Pair", ["a", "b"])


@dataclass
class Batch:
    x: torch.Tensor
    y: object = None


class Slotted:
    __slots__ = ()


class Slot:
    __slots__ = ("n",)

    def __init__(self, n):
        self.n = n


DIFFERENT = [
    (torch.ones(2), torch.ones(3)),
    (torch.ones(2), torch.ones(2).half()),
    (torch.tensor(5), torch.tensor(7)),
    (torch.tensor([5, 3]), torch.tensor([5, 4])),
    (SEEN, ~SEEN),
    (np.ones(2), np.ones(3)),
    (np.array([True]), np.array([False])),
    (np.array(5), np.array(7)),
    (np.int64(5), np.int64(7)),
    (np.bool_(True), np.bool_(False)),
    (np.float32(5), np.float32(7)),
    (1, True),
    (1, 2),
    (0.0, 1.0),
    (5.0, 7.0),
    (Fraction(5), Fraction(7)),
    (Decimal(5), Decimal(7)),
    (5 + 0j, 7 + 0j),
    ("a", "b"),
    (None, 0),
    (Size.SMALL, Size.LARGE),
    (Count.SMALL, Count.LARGE),
    (range(5), range(7)),
    ({5}, {7}),
    ([1], (1,)),
    ([1], [1, 1]),
    (deque([1]), deque([1, 1])),
    ({"a": 1}, {"b": 1}),
    (MappingProxyType({"a": 1}), MappingProxyType({"a": 2})),
    (Pair(1, torch.ones(2)), Pair(1, torch.ones(3))),
    (Batch(torch.ones(2)), Batch(torch.ones(2), 1)),
    (SimpleNamespace(n=5), SimpleNamespace(n=7)),
    (Own(5), Own(7)),
    (Slot(5), Slot(7)),
    (Slotted(), Batch),
    (lambda: 5, lambda: 7),
    (partial(int, 5), partial(int, 7)),
    (Own(5).model, Own(7).model),
]


# Addresses differ from process to process, and names of tests do not.
@pytest.mark.parametrize(("a", "b"), DIFFERENT, ids=lambda v: re.sub(" at 0x[0-9a-f]+", "", str(v)))
def test_signature(a, b):
    same = a if isinstance(a, MappingProxyType) else copy.copy(a)
    assert signature(a) == signature(same)
    assert signature(a) != signature(b)
    assert signature({"x": [a]}) != signature({"x": [b]})


def test_signature_of_values():
    assert signature(torch.zeros(3)) == signature(torch.ones(3))
    assert signature(torch.zeros(99).long()) == signature(torch.ones(99).long())
    assert signature(0.5) == signature(0.25)
    assert signature(np.float32(0.5)) == signature(np.float32(0.25))


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, device="meta") > 0,
        torch.eye(2).bool().to_sparse(),
        torch.ones(2).cfloat(),
    ],
    ids=lambda value: f"{value.dtype} {value.layout} {value.device}",
)
def test_signature_of_unreadable_tensor(value):
    assert signature(value) == signature(value.clone())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_signature_of_unreadable_object():
    for value in (iter([1]), torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])):
        assert signature(value) != signature(value)
    around = Own(5)
    around.n = around
    assert signature(around) == signature(around)


def rows(n, mask=None):
    with pyro.plate("rows", n):
        fn = dist.Normal(0.0, 1.0)
        pyro.sample("z", fn if mask is None else fn.mask(mask))


def in_closure():
    held = {"n": 5, "mask": None}

    def model():
        rows(**held)

    return model, held.update


def in_module():
    class Model(PyroModule):
        n, mask = 5, None

        def forward(self):
            rows(self.n, self.mask)

    model = Model()
    return model, lambda **changes: vars(model).update(changes)


def in_part_of_module():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.part = in_module()[0]

        def forward(self):
            self.part()

    model = Model()
    return model, lambda **changes: vars(model.part).update(changes)


def in_object():
    class Model:
        n, mask = 5, None

        def model(self):
            rows(self.n, self.mask)

    model = Model()
    return model.model, lambda **changes: vars(model).update(changes)


def in_partial():
    model, change = in_closure()
    return partial(lambda inner: inner(), model), change


SETTINGS = {"n": 5, "mask": None}


def of_settings():
    rows(**SETTINGS)


def in_global():
    return of_settings, SETTINGS.update


def in_default():
    held = {"n": 5, "mask": None}

    def model(held=held):
        rows(**held)

    return model, held.update


HELD = [in_closure, in_module, in_part_of_module, in_object, in_partial, in_global, in_default]


def started(model, *args):
    guide = AutoIResNet(model, num_blocks=1, hidden_dims=[8], init="plain")
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(2):
        svi.step(*args)
    return svi, guide


@pytest.mark.parametrize("made", HELD)
def test_looks_at_data_behind_model(made):
    model, change = made()
    svi, guide = started(model)
    try:
        for n in (7, 1):
            change(n=n)
            for call in (svi.step, guide, guide.median):
                with pytest.raises(ArgumentError, match=f"'rows' had 5 rows then, and has {n}"):
                    call()
        change(n=5)
        svi.step()
        change(mask=torch.arange(5) > 0)
        for call in (svi.step, guide, guide.median):
            with pytest.raises(ArgumentError, match="'z' is masked"):
                call()
    finally:
        change(n=5, mask=None)


def test_looks_at_defaults():
    def model(n=1):
        rows(n)

    svi, guide = started(model, 5)
    with pytest.raises(ArgumentError, match="'rows' had 5 rows then, and has 1"):
        svi.step()
    assert guide()["z"].shape == (5,)


def test_draws_of_observing_model_without_data():
    def model(y=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    _, guide = started(model, torch.ones(3))
    trace = pyro.poutine.trace(guide).get_trace()
    assert pyro.poutine.replay(model, trace)() is None


def test_signature_behind_pickled_model():
    model = pickle.loads(pickle.dumps(Own(5))).model
    assert signature_behind(model) == signature_behind(Own(5).model)
    assert signature_behind(model) != signature_behind(Own(7).model)


class Faulty:
    @property
    def shape(self):
        raise RuntimeError("not known yet")


def test_long_and_cyclic_data():
    root = {"children": []}
    root["children"].append({"parent": root, "size": 3})
    other = {"children": []}
    other["children"].append({"parent": other, "size": 3})
    assert signature(root) == signature(other)
    other["children"][0]["size"] = 4
    assert signature(root) != signature(other)
    deep = []
    for _ in range(5000):
        deep = [deep]
    signature(deep)
    words = [["w"] * 3] * 2000
    assert signature(words) == signature(words[:1] + words[1:])
    assert signature(words) != signature(words[1:])
    assert signature(Faulty()) == signature(Faulty())


def test_guide_of_a_model_with_a_large_corpus():
    corpus = [[f"w{j}" for j in range(10)] for _ in range(5000)]

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), len(corpus) / 5000).to_event(1))

    guide = AutoIResNet(model, num_blocks=1, init="plain")
    guide()
    assert len(repr(signature_behind(model))) < 2000

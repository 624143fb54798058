"""Copies, saved guides and parameter stores."""

import copy
import io

import pyro
import pytest
import torch
from pyro.infer import (
    Trace_ELBO,
)
from pyro.nn import PyroModule
from pyro.nn.module import to_pyro_module_

from pyro_iresnet import AutoIResNet
from pyro_iresnet.errors import (
    ArgumentError,
    ArgumentTypeError,
)

from .models import banana, gaussian, step


def same(a, b):
    x = torch.randn(4, a.latent_dim)
    return torch.equal(a.transform(x), b.transform(x))


def test_copy_before_first_call():
    guide = AutoIResNet(banana, 2)
    other = copy.deepcopy(guide)
    torch.manual_seed(0)
    a = step(guide)
    pyro.clear_param_store()
    torch.manual_seed(0)
    assert step(other) == a
    assert not any(p is q for p, q in zip(guide.parameters(), other.parameters(), strict=True))


def test_copy_after_step():
    guide = AutoIResNet(banana, 2)
    step(guide)
    other = copy.deepcopy(guide)
    assert same(guide, other)
    pyro.clear_param_store()
    step(other)
    assert not same(guide, other)
    step(guide)


def test_saves_guide():
    guide = AutoIResNet(banana, 2)
    step(guide)
    for what in (guide.transform, guide):
        file = io.BytesIO()
        torch.save(what, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        transform = getattr(loaded, "transform", loaded)
        x = torch.randn(4, 2)
        assert torch.equal(transform(x), guide.transform(x))
    step(guide)


def test_loads_state_dict():
    guide = AutoIResNet(gaussian, 2)
    step(guide, gaussian)
    fresh = AutoIResNet(gaussian, 2, init="plain")
    with pytest.raises(ArgumentError, match="seen its model"):
        fresh.load_state_dict(guide.state_dict())
    fresh()
    fresh.load_state_dict(guide.state_dict())
    assert same(fresh, guide)


def test_loads_param_store(tmp_path):
    guide = AutoIResNet(gaussian, 2)
    step(guide, gaussian)
    pyro.get_param_store().save(tmp_path / "params")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "params")
    fresh = AutoIResNet(gaussian, 2, init="plain")
    fresh()
    assert same(fresh, guide)
    step(fresh, gaussian)
    assert not same(fresh, guide)
    pyro.get_param_store().save(tmp_path / "more")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "more")
    further = AutoIResNet(gaussian, 2)
    further()
    assert same(fresh, further)


def test_loads_older_param_store():
    """A store with the parameters of each block, from before blocks were packed."""
    guide = AutoIResNet(gaussian, 2)
    step(guide, gaussian)
    pyro.clear_param_store()
    for name, value in guide.transform.state_dict().items():
        if not name.endswith("_extra_state"):
            pyro.param(f"AutoIResNet.transform$$${name}", value.clone())
    fresh = AutoIResNet(gaussian, 2, init="plain")
    fresh()
    assert same(fresh, guide)
    assert not any(".0.block" in name and "stacked_" not in name for name in pyro.get_param_store())
    step(fresh, gaussian)
    assert not same(fresh, guide)


def test_refuses_foreign_store():
    step(AutoIResNet(gaussian, 2), gaussian)
    with pytest.raises(ArgumentError, match="clear_param_store"):
        step(AutoIResNet(gaussian, 2, hidden_dims=[7]), gaussian)


def test_refuses_store_of_other_names():
    """A store of an older version or of more blocks would load in part."""
    step(AutoIResNet(gaussian, 2), gaussian)
    store = pyro.get_param_store()
    extra = "AutoIResNet.transform$$$2.below"
    pyro.param(extra, torch.zeros(3, 3))
    with pytest.raises(ArgumentError, match=r"2\.below', of another guide or version"):
        AutoIResNet(gaussian, 2)()
    assert extra in store


def test_module_local_parameters():
    with pyro.settings.context(module_local_params=True):
        guide, other = AutoIResNet(banana, 2), AutoIResNet(banana, 2)
        other()
        # SVI.step trains Pyro's own parameters only. Local parameters need a torch optimizer.
        loss = Trace_ELBO(num_particles=4, vectorize_particles=True)(banana, guide)
        loss()
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        values = []
        for _ in range(3):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert torch.tensor(values).isfinite().all()
        assert not same(guide, other)
        assert not list(pyro.get_param_store().keys())


def test_refuses_random_weights():
    guide = AutoIResNet(banana, 1, hidden_dims=[4])
    guide()
    with pytest.raises(ArgumentTypeError, match="random variables"):
        to_pyro_module_(guide)
    with pytest.raises(ArgumentTypeError, match="random variables"):
        PyroModule[type(guide.transform.parts[0])]


def is_trained(guide):
    before = [p.detach().clone() for p in guide.parameters()]
    step(guide, gaussian)
    pairs = zip(guide.parameters(), before, strict=True)
    # Some have no gradient, such as a mask.
    return sum(not torch.equal(p, old) for p, old in pairs) > len(before) / 2


def unpickled(guide):
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("other_of", [copy.deepcopy, unpickled, lambda _: AutoIResNet(gaussian, 2)])
def test_guides_of_one_name_train_in_turn(other_of):
    guide = AutoIResNet(gaussian, 2)
    step(guide, gaussian)
    other = other_of(guide)
    other()
    for each in (other, guide, other):
        own = [p.detach().clone() for p in (guide if each is other else other).parameters()]
        assert is_trained(each)
        rest = (guide if each is other else other).parameters()
        assert all(torch.equal(p, old) for p, old in zip(rest, own, strict=True))


@pytest.mark.parametrize("other_of", [copy.deepcopy, unpickled])
def test_copy_keeps_what_it_loads(other_of):
    guide = AutoIResNet(gaussian, 2)
    step(guide, gaussian)
    other = other_of(guide)
    step(guide, gaussian)
    loaded = other_of(guide)
    other.load_state_dict(guide.state_dict())
    step(guide, gaussian)
    # Without gradients, as those of an optimiser that sets them to None.
    guide.zero_grad()
    copy.deepcopy(guide)
    other()
    assert same(other, loaded)


def test_live_guide_takes_the_values_of_a_file(tmp_path):
    guide = AutoIResNet(gaussian, 2)
    step(guide, gaussian)
    store = pyro.get_param_store()
    store.save(tmp_path / "params")
    saved = copy.deepcopy(guide)
    step(guide, gaussian)
    assert not same(guide, saved)
    store.load(tmp_path / "params")
    guide()
    assert same(guide, saved)
    assert is_trained(guide)


def test_second_guide_tells_where_it_starts():
    step(AutoIResNet(gaussian, 2), gaussian)
    with pytest.warns(UserWarning, match="clear_param_store"):
        AutoIResNet(gaussian, 2)()


@pytest.mark.compiled
def test_compiles():
    guide = AutoIResNet(gaussian, 2)
    guide()
    compiled = torch.compile(guide, backend="eager")
    assert compiled().keys() == guide().keys()

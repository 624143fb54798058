"""Purity of blocks: no hidden changes, no hidden draws, complete copies."""

import copy
import io
import pickle

import pytest
import torch

from pyro_iresnet import Exact, ResidualBlock, Roulette, iresnet, iresnet_stack

from .. import zoo

BLOCKS = {
    "exact": lambda: zoo.block(logdet=Exact()),
    "roulette": lambda: zoo.block(20, logdet=Roulette()),
    "wrapped": lambda: ResidualBlock(zoo.CONTRACTIONS["wrapped"]()),
}


def size_of(block):
    return block.contraction.event_size or zoo.DIM


def train_a_step(block):
    optimizer = torch.optim.Adam(block.parameters(), lr=1e-2)
    y, logdet = block.forward_and_log_det(torch.randn(8, size_of(block)))
    (y.pow(2).sum(-1) - logdet).mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", BLOCKS)
def test_calls_change_nothing(name):
    block = BLOCKS[name]()
    x = torch.randn(6, size_of(block))
    before, state = x.clone(), {k: v.clone() for k, v in block.state_dict().items()}
    y, _ = block.forward_and_log_det(x)
    kept = y.detach().clone()
    block.inverse_and_log_det(y)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert torch.equal(y, kept)
    assert all(torch.equal(v, state[k]) for k, v in block.state_dict().items())


@pytest.mark.parametrize("name", BLOCKS)
def test_same_forward_in_modes(name):
    block = BLOCKS[name]()
    x = torch.randn(6, size_of(block))
    values = [block.train()(x), block.eval()(x), block(x), block.forward_and_log_det(x)[0]]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    torch.testing.assert_close(values[0], values[3])


@pytest.mark.parametrize("name", BLOCKS)
def test_follows_torch_seed(name):
    block = BLOCKS[name]()
    x = torch.randn(500, size_of(block))

    def draw(seed):
        torch.manual_seed(seed)
        return block.forward_and_log_det(x)[1]

    assert torch.equal(draw(3), draw(3))
    assert torch.equal(draw(3), draw(4)) == (name != "roulette")


@pytest.mark.parametrize("name", ["exact", "wrapped"])
def test_deterministic_draws_nothing(name):
    block = BLOCKS[name]()
    y = torch.randn(6, size_of(block))
    state = torch.get_rng_state()
    block.forward_and_log_det(y)
    block.inverse_and_log_det(y)
    block.lipschitz_bound()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", BLOCKS)
def test_saves_weights_once(name):
    block, fresh = BLOCKS[name](), BLOCKS[name]()
    state = block.state_dict()
    storages = [v.untyped_storage().data_ptr() for v in state.values() if v.numel()]
    assert len(storages) == len(set(storages))
    fresh.load_state_dict(copy.deepcopy(state))
    x = torch.randn(6, size_of(block))
    assert torch.equal(fresh(x), block(x))
    assert torch.equal(fresh.inverse(x), block.inverse(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
@pytest.mark.parametrize("name", ["exact", "roulette"])
def test_copies_after_training(name, duplicate):
    block = BLOCKS[name]()
    train_a_step(block)
    twin = duplicate(block)
    x = torch.randn(6, size_of(block))
    assert torch.equal(twin(x), block(x))
    train_a_step(twin)
    assert not torch.equal(twin(x), block(x))


@pytest.mark.parametrize("make", [lambda: iresnet(3), lambda: iresnet_stack(3, 2)])
def test_copies_trained_transforms(make):
    transform = make()
    x = torch.randn(8, 3)
    y = transform(x)
    transform.log_abs_det_jacobian(x, y).sum().backward()
    torch.optim.Adam(transform.parameters()).step()
    y = transform(x)
    file = io.BytesIO()
    torch.save(transform, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x), y)
    assert torch.equal(copy.deepcopy(transform)(x), y)


def test_converts_dtype():
    block = zoo.block(3)
    x = torch.randn(4, 3)
    y = block(x)
    low = block.float()(x.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), y, atol=1e-5, rtol=1e-5)
    assert block.forward_and_log_det(x.float())[1].dtype == torch.float32
    assert block.inverse(low).dtype == torch.float32

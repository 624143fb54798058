"""Lightning modules: flows and guides train, stop at faults, and resume."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra train")

import pyro
import pyro.distributions as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from pyro.infer import JitTrace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_iresnet import (
    AutoIResNet,
    Roulette,
    conditional_iresnet_flow,
    iresnet_flow,
)
from pyro_iresnet._modules import modules_of_kind
from pyro_iresnet.blocks import Block, pack_blocks
from pyro_iresnet.training import FlowModule, GuideModule, NonFiniteLossError, TenthAverage

from .common import densities, points, trainer


class Losses(Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(float(outputs["loss"]))


@pytest.mark.parametrize("name", ["nflows", "nflows, conditional", "Pyro", "Pyro, conditional"])
def test_density_improves(name, tmp_path):
    flow, conditional = densities()[name]
    x = points()
    data = TensorDataset(x, torch.randn(64, 1)) if conditional else TensorDataset(x)
    module = FlowModule(flow, learning_rate=0.05, warmup=1)
    before = module.log_prob(data.tensors).mean()
    losses = Losses()
    trainer(tmp_path, max_steps=20, callbacks=[losses]).fit(module, DataLoader(data, batch_size=64))
    assert module.log_prob(data.tensors).mean() > before + 0.2
    assert losses.found[-1] < losses.found[0]


LOSSES = [JitTrace_ELBO(), TraceEnum_ELBO(), TraceMeanField_ELBO(), TraceTMC_ELBO()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_guide_takes_losses_and_keywords(tmp_path, loss):
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = points()[0]
    module = GuideModule(model, AutoDiagonalNormal(model), {"x": x}, loss=loss)
    start = copy.deepcopy(list(module.parameters()))
    rows = DataLoader([(x,) if "Jit" in type(loss).__name__ else {"x": x}] * 2, batch_size=None)
    trainer(tmp_path, max_steps=2).fit(module, rows)
    assert not any(map(torch.equal, start, module.parameters()))


def test_guide_improves(tmp_path):
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = points()
    module = GuideModule(
        model, AutoIResNet(model, num_blocks=1, init="plain"), (x,), learning_rate=0.05
    )
    losses = Losses()
    rows = DataLoader([(x,)] * 60, batch_size=None)
    trainer(tmp_path, max_steps=60, callbacks=[losses]).fit(module, rows)
    assert sum(losses.found[-10:]) < sum(losses.found[:10])


def test_trains_the_model_too(tmp_path):
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            z = pyro.sample("z", dist.Normal(self.shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    model, x = Model(), torch.tensor(4.0)
    module = GuideModule(model, AutoDiagonalNormal(model), (x,), learning_rate=0.1, warmup=1)
    trainer(tmp_path, max_steps=20).fit(module, DataLoader([(x,)] * 20, batch_size=None))
    assert model.shift > 0.5


def test_average(tmp_path):
    """Compare with the weights k^9 of the steps."""

    class Kept(Callback):
        def __init__(self):
            self.values = []

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.values.append(next(pl_module.parameters()).detach().clone())

    torch.manual_seed(0)
    module, kept = FlowModule(iresnet_flow(2, 1, hidden_features=4), warmup=1), Kept()
    fit = trainer(tmp_path, max_steps=40, callbacks=[kept, TenthAverage()])
    fit.fit(module, DataLoader(points(16), batch_size=16))
    mean = kept.values[0]
    for count, value in enumerate(kept.values[1:], 1):
        mean = mean + (value - mean) / (1 + 0.1 * count)
    assert torch.allclose(next(module.parameters()), mean)


def test_average_keeps_masks_and_counters(tmp_path):
    flow = iresnet_flow(2, 1, hidden_features=4)
    flow.register_buffer("mask", torch.tensor([True, False]))
    flow.register_buffer("count", torch.tensor(7))
    fit = trainer(tmp_path, max_steps=3, callbacks=[TenthAverage()])
    fit.fit(FlowModule(flow), DataLoader(points(16), batch_size=16))
    assert flow.mask.tolist() == [True, False]
    assert flow.count == 7


@pytest.mark.parametrize("estimator", [None, Roulette()])
def test_resumes_to_the_same_losses(tmp_path, estimator):
    def made(folder, **options):
        torch.manual_seed(0)
        flow = iresnet_flow(3, 1, hidden_features=4, logdet=estimator)
        x = torch.randn(32, 3)
        losses = Losses()
        last = ModelCheckpoint(folder, save_last=True)
        fit = trainer(
            folder,
            enable_checkpointing=True,
            callbacks=[losses, TenthAverage(), last],
            **options,
        )
        rows = DataLoader(x, batch_size=8, shuffle=True)
        return fit, FlowModule(flow), rows, losses

    fit, module, rows, whole = made(tmp_path / "whole", max_epochs=4)
    fit.fit(module, rows)
    fit, other, rows, first = made(tmp_path / "parts", max_epochs=2)
    fit.fit(other, rows)
    fit, other, rows, second = made(tmp_path / "parts", max_epochs=4)
    torch.manual_seed(99)
    fit.fit(other, rows, ckpt_path=tmp_path / "parts" / "last.ckpt", weights_only=False)
    assert first.found + second.found == whole.found
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_loads_without_a_trainer(tmp_path):
    fit = trainer(tmp_path, max_steps=2, enable_checkpointing=True)
    module = FlowModule(iresnet_flow(2, 1, hidden_features=4))
    fit.fit(module, DataLoader(points(), batch_size=32))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    flow = iresnet_flow(2, 1, hidden_features=4)
    loaded = FlowModule.load_from_checkpoint(tmp_path / "last.ckpt", flow=flow, weights_only=False)
    for one, two in zip(module.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, two)


def test_keeps_parameters_apart(tmp_path):
    flow = iresnet_flow(2, 3, hidden_features=4)
    before = list(flow.parameters())
    module = FlowModule(flow, learning_rate=0.1, warmup=1)
    assert all(one is other for one, other in zip(before, module.parameters(), strict=True))
    frozen, trained, _ = modules_of_kind(flow, Block)
    frozen.requires_grad_(False)
    start = copy.deepcopy([frozen.state_dict(), trained.state_dict()])
    trainer(tmp_path, max_steps=2).fit(module, DataLoader(points(), batch_size=32))
    weight = "contraction.layers.0.weight"
    assert torch.equal(frozen.state_dict()[weight], start[0][weight])
    assert not torch.equal(trained.state_dict()[weight], start[1][weight])


def test_loads_a_packed_flow(tmp_path):
    made = [iresnet_flow(2, 3, hidden_features=4) for _ in range(2)]
    pack_blocks(made[0])
    fit = trainer(tmp_path, max_steps=2, enable_checkpointing=True, callbacks=[TenthAverage()])
    fit.fit(FlowModule(made[0]), DataLoader(points(), batch_size=32))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    FlowModule.load_from_checkpoint(tmp_path / "last.ckpt", flow=made[1], weights_only=True)
    x = points()
    torch.testing.assert_close(*[flow.eval().log_prob(x) for flow in made])


@pytest.mark.parametrize("kind", ["flow", "guide"])
def test_checkpoint_keeps_options(tmp_path, kind):
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def parts():
        if kind == "flow":
            return FlowModule, {"flow": iresnet_flow(2, 1, hidden_features=4)}, points()
        guide = AutoDiagonalNormal(model, init_scale=0.1)
        return GuideModule, {"model": model, "guide": guide}, [()] * 2

    given = {"learning_rate": np.float64(1e-3), "warmup": 7}
    make, built, rows = parts()
    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=True)
    fit.fit(make(**built, **given), DataLoader(rows, batch_size=32 if kind == "flow" else None))
    path = tmp_path / "last.ckpt"
    fit.save_checkpoint(path)
    make, built, _ = parts()
    loaded = make.load_from_checkpoint(path, **built, weights_only=True)
    assert (loaded.learning_rate, loaded.warmup) == (1e-3, 7)
    loaded = make.load_from_checkpoint(path, **built, learning_rate=0.5, weights_only=True)
    assert (loaded.learning_rate, loaded.warmup) == (0.5, 7)


def test_subclass_keeps_options(tmp_path):
    class Slow(FlowModule):
        def __init__(self, flow, extra=None):
            super().__init__(flow, learning_rate=1e-4)
            self.extra = extra

    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=True)
    fit.fit(Slow(iresnet_flow(2, 1), nn.Linear(1, 1)), DataLoader(points(), batch_size=32))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    given = {"flow": iresnet_flow(2, 1), "extra": nn.Linear(1, 1)}
    loaded = Slow.load_from_checkpoint(tmp_path / "last.ckpt", **given, weights_only=True)
    assert loaded.hparams == {"learning_rate": 1e-4, "warmup": 100}


@pytest.mark.parametrize("name", densities())
def test_scores_other_rows(name, tmp_path):
    flow, is_conditional = densities()[name]
    x = points(6)
    batches = TensorDataset(x, torch.randn(6, 1)) if is_conditional else TensorDataset(x)
    module, loader = FlowModule(flow), DataLoader(batches, batch_size=4)
    (logged,) = trainer(tmp_path).test(module, loader, verbose=False)
    scores = torch.cat(trainer(tmp_path).predict(module, loader))
    with torch.no_grad():
        expected = module.log_prob(batches.tensors)
    torch.testing.assert_close(scores, expected)
    assert logged["test_loss"] == pytest.approx(-float(expected.mean()))


def test_clips_in_mixed_precision(tmp_path):
    fit = trainer(tmp_path, max_steps=2, precision="bf16-mixed", gradient_clip_val=1.0)
    fit.fit(FlowModule(iresnet_flow(2, 1, hidden_features=4)), DataLoader(points(), batch_size=32))
    assert fit.global_step == 2


def test_averages_in_double_precision(tmp_path):
    flow = iresnet_flow(2, 1, hidden_features=4)
    x = points().double()
    fit = trainer(tmp_path, max_steps=4, precision="64-true", callbacks=[TenthAverage()])
    module = FlowModule(flow)
    fit.fit(module, DataLoader(x, batch_size=16), DataLoader(x, batch_size=64))
    assert {p.dtype for p in module.parameters()} == {torch.float64}


def test_embeds_in_mixed_precision(tmp_path):
    flow = conditional_iresnet_flow(2, 3, 1, hidden_features=4, embedding_net=nn.Linear(3, 3))
    rows = DataLoader(TensorDataset(points(), torch.randn(64, 3)), batch_size=32)
    fit = trainer(tmp_path, max_steps=2, precision="bf16-mixed")
    fit.fit(FlowModule(flow), rows)
    assert fit.global_step == 2


def test_stops_at_a_bad_row(tmp_path):
    x = points(16)
    x[[3, 5]] = math.nan
    fit = trainer(tmp_path, max_steps=5, enable_checkpointing=True)
    with pytest.raises(NonFiniteLossError, match=r"\[3, 5\]") as caught:
        fit.fit(FlowModule(iresnet_flow(2, 1, between=None)), DataLoader(x, batch_size=16))
    assert caught.value.rows == [3, 5]
    assert "Look at these rows" in str(caught.value)
    assert "checkpoint" not in str(caught.value)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (str(copied), copied.step, copied.rows) == (str(caught.value), 0, [3, 5])


def test_stops_after_a_checkpoint(tmp_path):
    x = points(48)
    x[40] = math.nan
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    fit = trainer(tmp_path, max_steps=5, enable_checkpointing=True, callbacks=[callback])
    with pytest.raises(NonFiniteLossError, match=r"last.ckpt is of before"):
        fit.fit(FlowModule(iresnet_flow(2, 1, between=None)), DataLoader(x, batch_size=16))


def test_stops_a_guide_without_rows(tmp_path):
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("bad", math.nan * z.sum())

    fit = trainer(tmp_path, max_steps=2)
    rows = DataLoader([()] * 2, batch_size=None)
    found = pytest.raises(NonFiniteLossError, match=r"step 0\. Take a smaller learning rate\.$")
    with pyro.validation_enabled(False), found:
        fit.fit(GuideModule(model, AutoDiagonalNormal(model)), rows)

"""Start of ActNorms in models, guides and the parameter store of Pyro."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.nn import PyroModule

from pyro_iresnet import conditional_iresnet_stack, iresnet_stack

from .test_starts import unchanged, values


def model(stack, x):
    pyro.module("flow", stack, update_module_params=True)
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.TransformedDistribution(base, [stack.inv]), obs=x)


def log_prob(model, *args):
    return pyro.poutine.trace(model).get_trace(*args).log_prob_sum()


def test_resumes_from_parameter_store(tmp_path):
    x, file = 5 + 3 * torch.randn(100, 2), tmp_path / "store.pt"
    stack = iresnet_stack(2, 1, [4])
    svi = SVI(partial(model, stack), lambda _: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(3):
        svi.step(x)
    pyro.get_param_store().save(file)
    pyro.clear_param_store()
    pyro.get_param_store().load(file)
    resumed = iresnet_stack(2, 1, [4])
    log_prob(model, resumed, 20 + torch.randn(64, 2))
    assert unchanged(resumed, values(stack))


def test_fresh_start_behind_parameter_store(tmp_path):
    # A store whose ActNorms have not started leaves the start to the data.
    stack, file = iresnet_stack(2, 1, [4]), tmp_path / "store.pt"
    log_prob(model, stack, torch.randn(3, 2))
    pyro.get_param_store().save(file)
    pyro.clear_param_store()
    pyro.get_param_store().load(file)
    resumed = iresnet_stack(2, 1, [4])
    log_prob(model, resumed, 5 + 3 * torch.randn(100, 2))
    assert resumed[0].has_started()
    assert torch.equal(pyro.param("flow$$$0.shift"), resumed[0].shift)


class Holder(PyroModule):
    def __init__(self):
        super().__init__()
        self.stack = iresnet_stack(2, 1, [4])

    def forward(self, x):
        base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.TransformedDistribution(base, [self.stack.inv]), obs=x)


def test_start_in_pyro_module():
    holder = Holder()
    log_prob(holder, 5 + torch.randn(50, 2))
    assert holder.stack[0].has_started()
    other = Holder()
    other.load_state_dict(holder.state_dict())
    before = values(other)
    log_prob(other, torch.randn(50, 2))
    assert unchanged(other, before)


def test_silent_in_guide():
    def normal():
        pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))

    guide = AutoNormalizingFlow(normal, lambda dim: iresnet_stack(dim, 1, [4]))
    svi = SVI(normal, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trained before")
        losses = [svi.step() for _ in range(5)]
    assert torch.tensor(losses).isfinite().all()
    before = values(guide.transform)
    guide.transform(5 + torch.randn(50, 2))
    assert unchanged(guide.transform, before)


def test_start_under_any_context():
    stack = conditional_iresnet_stack(2, 3, 1, [4])
    stack.condition(torch.randn(8, 3))(torch.randn(8, 2))
    assert not stack[0].has_started()
    stack.condition(torch.randn(50, 3))(5 + torch.randn(50, 2))
    before = values(stack)
    stack.condition(torch.randn(50, 3))(torch.randn(50, 2))
    assert stack[0].has_started()
    assert unchanged(stack, before)

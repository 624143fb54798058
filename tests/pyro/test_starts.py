"""Start of ActNorms: the parameters alone tell it, wherever they go."""

import copy
import io
import warnings
from functools import partial

import nflows.transforms
import pytest
import torch
from torch.autograd import forward_ad
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_iresnet import actnorm, iresnet_flow, iresnet_stack
from pyro_iresnet.errors import TracingError
from pyro_iresnet.hosts.nflows import PatientActNorm

both = pytest.mark.parametrize("make", [actnorm, PatientActNorm])
flows = pytest.mark.parametrize(
    "build", [partial(iresnet_stack, 2, 1, [4]), partial(iresnet_flow, 2, 1, hidden_features=4)]
)


def output(module, x):
    y = module(x)
    return y[0] if isinstance(y, tuple) else y


def values(module):
    return [p.detach().clone() for p in module.parameters()]


def unchanged(module, before):
    return all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def started(make, shift=3.0):
    norm = make(2)
    norm(shift + 2 * torch.randn(50, 2))
    assert norm.has_started()
    return norm


# ---------------------------------------------------------------------------- first batches


@both
@pytest.mark.parametrize(("number", "value"), [(0, 1.0), (50, torch.nan), (15, 1.0)])
def test_waits_for_finite_rows(make, number, value):
    norm, x = make(2), 5 + 3 * torch.randn(100, 2)
    norm(value * torch.randn(number, 2))
    assert not norm.has_started()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = output(norm, x)
        norm(-x)
    torch.testing.assert_close(y.mean(0), torch.zeros(2))
    torch.testing.assert_close(y.std(0), torch.ones(2))


@both
def test_warns_once_after_few_rows(make):
    norm, rows = make(2), 5 + torch.randn(40, 2)
    norm(rows[:8])
    with torch.no_grad():
        norm.shift.fill_(0.5)
    message = f"{type(norm).__name__} was trained before a batch of 16 rows"
    with pytest.warns(UserWarning, match=message):
        norm(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(output(norm, rows), rows + 0.5)


def test_silent_after_a_single_draw():
    # A guide draws one point; no batch came before the training.
    norm = actnorm(2)
    norm(torch.randn(2))
    with torch.no_grad():
        norm.shift.fill_(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm(torch.randn(40, 2))


@both
def test_silent_load_after_few_rows(make):
    norm, other = make(2), started(make)
    norm(torch.randn(3, 2))
    norm.load_state_dict(other.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = torch.randn(40, 2)
        assert torch.equal(output(norm, x), output(other, x))


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_standardises_short_floats(make, dtype):
    norm = make(3).to(dtype)
    x = (100 + torch.tensor([20.0, 5.0, 0.0]) * torch.randn(2000, 3)).to(dtype)
    norm(x)
    mean, std = x.double().mean(0), x.double().std(0)
    scale = torch.cat([std[:2], torch.ones(1)])
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(norm.log_scale.double(), -scale.log(), rtol=rtol, atol=rtol)
    torch.testing.assert_close(norm.shift.double(), -mean / scale, rtol=rtol, atol=rtol)


@both
def test_start_in_inference_mode(make):
    norm, x = make(2), 3 + torch.randn(50, 2)
    with torch.inference_mode():
        norm(x)
    assert norm.has_started()
    output(norm, x).sum().backward()
    assert norm.shift.grad is not None


# ---------------------------------------------------------------------------- states


@both
def test_no_buffer(make):
    assert not list(make(2).buffers())


@both
@pytest.mark.parametrize("flag", [True, False])
def test_loads_old_state(make, flag):
    old = {**started(make).state_dict(), "initialized": torch.tensor(flag)}
    norm = make(2)
    assert norm.load_state_dict(old) == ([], [])
    before = values(norm)
    norm(torch.randn(50, 2))
    assert unchanged(norm, before)
    assert "initialized" in old
    with pytest.raises(RuntimeError, match="Unexpected key"):
        make(2).load_state_dict({**old, "initialised": torch.tensor(True)})


def test_loads_state_of_nflows():
    theirs = nflows.transforms.CompositeTransform([nflows.transforms.ActNorm(2)])
    x = 3 + 2 * torch.randn(50, 2)
    theirs(x)
    ours = nflows.transforms.CompositeTransform([PatientActNorm(2)])
    ours.load_state_dict(theirs.state_dict())
    for way in ("forward", "inverse"):
        torch.testing.assert_close(getattr(ours, way)(x), getattr(theirs, way)(x))


@both
@pytest.mark.parametrize("key", ["log_scale", "shift"])
def test_partial_load_is_start(make, key):
    norm = make(2)
    norm.load_state_dict({key: started(make).state_dict()[key]}, strict=False)
    before = values(norm)
    norm(torch.randn(50, 2))
    assert unchanged(norm, before)


@flows
def test_copies_stay_started(build):
    flow, x = build(), 3 + torch.randn(50, 2)
    run = getattr(flow, "log_prob", flow)
    run(x)
    file = io.BytesIO()
    torch.save(flow, file)
    file.seek(0)
    for other in (copy.deepcopy(flow), torch.load(file, weights_only=False)):
        before = values(other)
        getattr(other, "log_prob", other)(10 + 5 * x)
        assert unchanged(other, before)


def test_shared_start_of_cache_copy():
    norm = actnorm(2)
    other = norm.with_cache(0)
    other(3 + torch.randn(50, 2))
    before = values(norm)
    assert norm.has_started()
    norm(torch.randn(50, 2))
    assert unchanged(norm, before)


@flows
@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("ema", [None, get_ema_multi_avg_fn(0.9)])
def test_averages(build, use_buffers, ema):
    flow, x = build(), 3 + torch.randn(50, 2)
    average = AveragedModel(flow, multi_avg_fn=ema, use_buffers=use_buffers)
    run, averaged = (getattr(m, "log_prob", m) for m in (flow, average.module))
    run(x)
    for _ in range(3):
        average.update_parameters(flow)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.01)
    before = values(average.module)
    averaged(10 + 5 * x)
    assert unchanged(average.module, before)


# ---------------------------------------------------------------------------- no start


@both
@pytest.mark.parametrize("keys", [["shift"], ["log_scale"], ["log_scale", "shift"]])
def test_ignores_replaced_parameters(make, keys):
    norm, x = make(2), 5 + 3 * torch.randn(50, 2)
    replaced = {key: torch.zeros(2, requires_grad=True) for key in keys}
    y = torch.func.functional_call(norm, replaced, (x,))
    assert torch.equal(y[0] if isinstance(y, tuple) else y, x)
    assert not norm.has_started()
    assert not any(tensor.any() for tensor in replaced.values())


@both
def test_warns_in_replica(make):
    norm, x = make(2), 5 + 3 * torch.randn(50, 2)

    def replica():
        # A replica of nn.DataParallel holds copies of the parameters as plain attributes.
        made = norm._replicate_for_data_parallel()
        for name, parameter in norm.named_parameters():
            setattr(made, name, parameter.clone())
        return made

    with pytest.warns(UserWarning, match="Call the flow once on data, in train mode, before"):
        assert torch.equal(output(replica(), x), x)
    assert not norm.has_started()
    norm(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(output(replica(), x), output(norm, x))


@both
def test_start_under_forward_mode(make):
    norm, x = make(2), 3 + torch.randn(50, 2)
    with forward_ad.dual_level():
        y = output(norm, forward_ad.make_dual(x, torch.ones(50, 2)))
        tangent = forward_ad.unpack_dual(y).tangent
        assert forward_ad.unpack_dual(norm.shift).tangent is None
    torch.testing.assert_close(tangent, norm.log_scale.exp().expand(50, 2))


@both
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_trace_before_start(make):
    norm, x = make(2), 5 + 3 * torch.randn(50, 2)
    with pytest.raises(TracingError, match=r"Call it once on data before, or call eval\(\)"):
        torch.jit.trace(norm, (x,))
    assert not norm.has_started()
    assert torch.equal(output(torch.jit.trace(copy.deepcopy(norm).eval(), (x,)), x), x)
    y = output(norm, x)
    torch.testing.assert_close(output(torch.jit.trace(norm, (x.clone(),)), x), y)


def test_frozen_parameter_starts():
    norm = actnorm(2)
    norm.requires_grad_(False)
    norm(3 + torch.randn(50, 2))
    assert norm.has_started()

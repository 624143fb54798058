import pytest
import torch

from pyro_iresnet import actnorm, iresnet_stack
from pyro_iresnet.errors import ArgumentError
from pyro_iresnet.hosts.pyro import ActNorm, LinearAutoregressive


def test_standardises_first_batch():
    transform = actnorm(3)
    x = torch.tensor([1.0, -5.0, 1e3]) + torch.tensor([1e-3, 1.0, 50.0]) * torch.randn(200, 3)
    y = transform(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-8, rtol=0)
    torch.testing.assert_close(y.std(0), torch.ones(3))
    other = transform(10 * x)
    assert (other.std(0) > 5).all()


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 1, 3), (2, 3), (15, 3)])
def test_waits_for_enough_rows(shape):
    transform = actnorm(3)
    x = torch.randn(shape)
    assert torch.equal(transform(x), x)
    y = transform(5 + torch.randn(50, 3))
    torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-8, rtol=0)


def test_keeps_scale_of_constant():
    y = actnorm(2)(torch.stack([torch.ones(20), torch.randn(20)], dim=1))
    assert y.isfinite().all()
    torch.testing.assert_close(y[:, 0], torch.zeros(20))


def test_ignores_vmap():
    transform = actnorm(2)
    torch.func.vmap(transform)(torch.randn(50, 2))
    assert not transform.has_started()


def test_ignores_eval_and_inverse():
    transform = actnorm(2).eval()
    x = 3 + torch.randn(50, 2)
    assert torch.equal(transform(x), x)
    transform.train()
    assert torch.equal(transform.inv(x.clone()), x)
    assert not transform.has_started()
    torch.testing.assert_close(transform(x.clone()).mean(0), torch.zeros(2), atol=1e-8, rtol=0)


def test_keeps_start_in_state():
    first, second = actnorm(2), actnorm(2)
    x = 3 + torch.randn(50, 2)
    first(x)
    second.load_state_dict(first.state_dict())
    other = torch.randn(50, 2)
    assert torch.equal(second(other), first(other))


def test_finite_start_despite_nan():
    x = torch.randn(50, 2)
    x[3, 0] = float("nan")
    transform = actnorm(2)
    transform(x)
    assert all(p.isfinite().all() for p in transform.parameters())


def test_refuses_wrong_event():
    with pytest.raises(ArgumentError, match=r"event shape \(3,\); got \(5, 2\)"):
        actnorm(3)(torch.randn(5, 2))


@pytest.mark.parametrize("kind", [ActNorm, LinearAutoregressive])
def test_refuses_scale_of_other_size(kind):
    transform = kind(2).eval()
    scale = {"log_scale": torch.tensor([0.5])}
    with pytest.raises(ArgumentError, match=r"event shape \(1,\); got \(20, 2\)"):
        torch.func.functional_call(transform, scale, torch.randn(20, 2))


def test_standardises_stack():
    stack = iresnet_stack(2, 3)
    z = stack(100 + 7 * torch.randn(500, 2))
    assert z.mean(0).abs().max() < 1e-6
    assert (z.std(0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1e5 / 3, -7e-9])
def test_ignores_rounding(value, dtype):
    norm = ActNorm(2).to(dtype)
    x = torch.stack([torch.full((1000,), value), torch.randn(1000)], -1).to(dtype)
    norm(x)
    assert norm.log_scale[0] == 0
    torch.testing.assert_close(
        norm(x)[:, 0], torch.zeros(1000, dtype=dtype), atol=1e-6 * max(abs(value), 1), rtol=0
    )


def test_images():
    norm = ActNorm(3, event_dim=3)
    x = 3 + 2 * torch.randn(2, 10, 3, 4, 6)
    y = norm(x)
    over = y.movedim(-3, -1).reshape(-1, 3)
    torch.testing.assert_close(over.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(over.std(0), torch.ones(3), atol=1e-6, rtol=0)
    log_det = norm.log_abs_det_jacobian(x, y)
    assert log_det.shape == (2, 10)
    torch.testing.assert_close(log_det, (24 * norm.log_scale.sum()).expand(2, 10))
    torch.testing.assert_close(norm.with_cache(0).inv(y), x)
    assert norm.domain.event_dim == norm.codomain.event_dim == 3
    with pytest.raises(ArgumentError, match=r"\(3, -1, -1\)|event shape"):
        norm(torch.randn(5, 2, 4, 6))
    with pytest.raises(ArgumentError, match="event_dim to be 1 for vectors or 3 for images"):
        ActNorm(3, event_dim=2)

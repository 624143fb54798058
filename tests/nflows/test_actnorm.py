"""ActNorm for nflows, which waits for enough rows."""

import pytest
import torch

from pyro_iresnet import iresnet_flow
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.hosts.nflows import PatientActNorm


def test_waits_for_enough_rows():
    rows = 5 + 3 * torch.randn(200, 2)
    flow = iresnet_flow(2, 2, hidden_features=8)
    flow.log_prob(rows[:2])
    norms = [m for m in flow.modules() if isinstance(m, PatientActNorm)]
    assert len(norms) == 3
    assert not any(m.has_started() for m in norms)
    flow.log_prob(rows)
    assert all(m.has_started() for m in norms)
    out, _ = norms[0](rows)
    assert torch.allclose(out.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(out.std(0), torch.ones(2), atol=1e-12)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.log_prob(10 * rows)
    assert all(bool((v == before[k]).all()) for k, v in flow.state_dict().items())


def test_keeps_trained_parameters():
    norm = PatientActNorm(2)
    norm(torch.randn(8, 2))
    with torch.no_grad():
        norm.log_scale.fill_(0.5)
    with pytest.warns(UserWarning, match="trained before a batch of 16 rows"):
        norm(torch.randn(8, 2))
    norm(5 + 3 * torch.randn(100, 2))
    assert bool((norm.log_scale == 0.5).all())
    assert not norm.shift.any()


def test_starts_on_constants_and_images():
    norm = PatientActNorm(3)
    x = torch.cat([torch.full((50, 1), 7.0), 4 * torch.randn(50, 2)], 1)
    out, logabsdet = norm(x)
    assert out.isfinite().all()
    assert logabsdet.isfinite().all()
    assert norm.log_scale[0] == 0
    assert torch.allclose(norm.inverse(out)[0], x, atol=1e-12)
    images = PatientActNorm(3)
    pictures = torch.randn(16, 3, 5, 5) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 1
    out, _ = images(pictures)
    assert torch.allclose(out.std((0, 2, 3)), torch.ones(3), atol=1e-12)


def test_starts_from_finite_rows():
    norm = PatientActNorm(2)
    rows = 5 + 3 * torch.randn(100, 2)
    spoilt = rows.clone()
    spoilt[0, 0], spoilt[1, 1] = torch.nan, torch.inf
    norm(spoilt[:17])
    assert not norm.has_started()
    norm(spoilt)
    out, _ = norm(rows[2:])
    torch.testing.assert_close(out.std(0), torch.ones(2))


@pytest.mark.parametrize("rows", [(20, 1), (20, 3), (20,), (20, 2, 2)])
def test_ignores_refused_rows(rows):
    flow = iresnet_flow(2, 2, hidden_features=8)
    with pytest.raises(ArgumentError, match=r"Expected inputs"):
        flow._transform(torch.randn(rows))
    norms = [m for m in flow.modules() if isinstance(m, PatientActNorm)]
    assert not any(m.has_started() for m in norms)
    with pytest.raises(ArgumentTypeError, match="dtype"):
        norms[0].inverse(torch.randn(20, 2, dtype=torch.float32))


def test_ignores_torch_func():
    norm, rows = PatientActNorm(2), 5 + 3 * torch.randn(4, 50, 2)
    assert torch.equal(torch.func.vmap(lambda x: norm(x)[0])(rows), rows)
    torch.func.grad(lambda x: norm(x)[0].sum())(rows[0])
    replaced = {name: p.detach().clone() for name, p in norm.named_parameters()}
    assert torch.equal(torch.func.functional_call(norm, replaced, (rows[0],))[0], rows[0])
    assert not norm.has_started()
    norm(rows[0])
    assert norm.has_started()


@pytest.mark.compiled
def test_compiles_after_start():
    flow = iresnet_flow(2, 2, hidden_features=8)
    rows = torch.randn(50, 2)
    expected = flow.log_prob(rows)
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(rows), expected)


def test_compiles_after_load():
    trained, flow = (iresnet_flow(2, 2, hidden_features=8) for _ in range(2))
    rows = torch.randn(50, 2)
    expected = trained.log_prob(rows)
    flow.load_state_dict(trained.state_dict())
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(rows), expected)

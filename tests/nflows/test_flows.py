"""Ready-made density estimators for nflows."""

import math
import pickle

import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, LULinear, Transform
from torch.utils.data import DataLoader, TensorDataset

from pyro_iresnet import Exact, IResNetTransform, conditional_iresnet_flow, iresnet_flow
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.hosts.nflows import IResNetComposite, PatientActNorm
from pyro_iresnet.images import iresnet_image_flow

from .test_stacks import trained

# ---------------------------------------------------------------------------- builders


def test_standardises_and_fits():
    torch.manual_seed(0)
    flow = iresnet_flow(2, 4, hidden_features=32)
    data = torch.tensor([100.0, -3.0]) + torch.randn(512, 2) * torch.tensor([20.0, 0.01])
    with torch.no_grad():
        noise = flow.transform_to_noise(data)
    torch.testing.assert_close(noise.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(noise.std(0), torch.ones(2), atol=1e-6, rtol=0)
    trained(flow, data, steps=20, rate=5e-3)
    expected = torch.distributions.Normal(data.mean(0), data.std(0)).log_prob(data).sum(1).mean()
    assert flow.log_prob(data).mean() > expected - 0.1
    assert flow.sample(3).shape == (3, 2)


def test_follows_context():
    torch.manual_seed(0)
    flow = conditional_iresnet_flow(
        2, 3, 3, hidden_features=32, embedding_net=torch.nn.Linear(1, 3)
    )
    context = torch.randn(512, 1)
    data = torch.cat([2 * context, -context], dim=1) + 0.3 * torch.randn(512, 2)
    losses = trained(flow, data, context, steps=150, rate=5e-3)
    # Normal distribution without context: 3.6 nats. True density: 0.43 nats.
    assert losses[-1] < 1.5
    samples = flow.sample(200, torch.tensor([[1.0], [-1.0]]))
    means = samples.mean(1)
    assert means[0, 0] > 1
    assert means[1, 0] < -1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: iresnet_flow(0), "features"),
        (lambda: iresnet_flow(2, 0), "num_blocks"),
        (lambda: iresnet_flow(2, lipschitz=1.0), "lipschitz"),
        (lambda: conditional_iresnet_flow(2, 0), "context_features"),
    ],
)
def test_refuses_wrong_values(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: iresnet_flow(2, between=3), "between"),
        (lambda: conditional_iresnet_flow(2, 3, embedding_net=5), "embedding_net"),
        (lambda: iresnet_flow("2"), "features"),
    ],
)
def test_refuses_wrong_types(make, words):
    with pytest.raises(ArgumentTypeError, match=words):
        make()


def test_nothing_between():
    flow = iresnet_flow(3, 2, between=None)
    assert len(flow._transform._transforms) == 2


# ---------------------------------------------------------------------------- samples


class Doubled(Transform):
    """A transform of the user's."""

    def forward(self, inputs, context=None):
        return 2 * inputs, inputs.new_full((len(inputs),), math.log(2) * inputs.shape[1])

    def inverse(self, inputs, context=None):
        return inputs / 2, inputs.new_full((len(inputs),), -math.log(2) * inputs.shape[1])


@pytest.mark.parametrize("between", [PatientActNorm, lambda size: Doubled(), None])
@pytest.mark.parametrize("conditional", [False, True])
def test_outputs_alone(between, conditional, monkeypatch):
    flow = conditional_iresnet_flow(3, 2, 2, between=between, logdet=Exact())
    if not conditional:
        flow = iresnet_flow(3, 2, between=between, logdet=Exact())
    x, context = torch.randn(40, 3), torch.randn(40, 2) if conditional else None
    flow.log_prob(x, context)
    transform = flow.eval().transform
    noise, _ = transform(x, context)
    back, _ = transform.inverse(noise, context)
    monkeypatch.setattr(Exact, "__call__", None)
    # A value without its Jacobian takes other products, which round in another way.
    for found in (transform.encode(x, context), flow.transform_to_noise(x, context)):
        torch.testing.assert_close(found, noise, rtol=0, atol=1e-14)
    assert torch.equal(transform.decode(noise, context), back)
    shape = (40, 7, 3) if conditional else (7, 3)
    assert flow.sample(7, context).shape == shape


def test_hooks_act_on_outputs_alone():
    flow = iresnet_flow(2, 2, between=None)
    seen = []
    flow.transform._transforms[0].register_forward_hook(lambda *_: seen.append(1))
    flow.transform_to_noise(torch.randn(5, 2))
    assert seen == [1]


@pytest.mark.parametrize("batch_size", [1, 3, 10, 12])
def test_samples_in_parts(batch_size):
    flow = conditional_iresnet_flow(2, 3, 2).eval()
    context = torch.tensor([[3.0, 0.0, 0.0], [0.0, -3.0, 0.0]])
    torch.manual_seed(0)
    samples = flow.sample(10, context, batch_size)
    assert samples.shape == (2, 10, 2)
    if batch_size >= 10:
        torch.manual_seed(0)
        assert torch.equal(samples, flow.sample(10, context))
    assert iresnet_flow(2, 2).eval().sample(10, batch_size=batch_size).shape == (10, 2)


@pytest.mark.parametrize("method", ["sample", "sample_and_log_prob"])
@pytest.mark.parametrize(("count", "error"), [(0, ArgumentError), (2.5, ArgumentTypeError)])
def test_refuses_wrong_number_of_samples(method, count, error):
    with pytest.raises(error, match=f"Expected num_samples to be .*got {count}"):
        getattr(iresnet_flow(2, 1), method)(count)


# ---------------------------------------------------------------------------- processes and dtypes


class Scored(torch.utils.data.Dataset):
    """Rows and log-densities under a flow, computed in a worker."""

    def __init__(self, flow, rows):
        self.flow, self.rows = flow, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        with torch.no_grad():
            return self.rows[i], self.flow.log_prob(self.rows[i : i + 1])[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_scores_in_workers(start):
    flow = iresnet_flow(3, 2, hidden_features=8)
    rows = torch.randn(12, 3)
    flow.log_prob(rows)
    flow.eval()
    loader = DataLoader(
        Scored(flow, rows), batch_size=4, num_workers=2, multiprocessing_context=start
    )
    found = torch.cat([log_prob for _, log_prob in loader])
    torch.testing.assert_close(found, flow.log_prob(rows).detach())
    for (batch,) in DataLoader(TensorDataset(rows), batch_size=4, num_workers=1):
        assert flow.log_prob(batch).shape == (4,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pickles_either_dtype(dtype):
    torch.set_default_dtype(torch.float32)
    flow = iresnet_flow(3, 2, hidden_features=8).to(dtype)
    rows = torch.randn(64, 3, dtype=dtype)
    trained(flow, rows)
    twin = pickle.loads(pickle.dumps(flow))
    assert torch.equal(twin.log_prob(rows), flow.log_prob(rows))
    assert flow.log_prob(rows).dtype == dtype
    noise, _ = flow._transform(rows)
    back, _ = flow._transform.inverse(noise)
    torch.testing.assert_close(back, rows, atol=1e-3 if dtype == torch.float32 else 1e-7, rtol=0)


@pytest.mark.parametrize("between", [PatientActNorm, None])
@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_samples_own_dtype(default, dtype, context, between):
    torch.set_default_dtype(default)
    options = {"num_blocks": 2, "hidden_features": 8, "between": between}
    if context is None:
        flow, given = iresnet_flow(2, **options), []
    else:
        flow = conditional_iresnet_flow(2, context, **options)
        given = [torch.randn(4, context, dtype=dtype)]
    flow.to(dtype).eval()
    samples, log_prob = flow.sample_and_log_prob(5, *given)
    assert samples.dtype == log_prob.dtype == dtype
    assert flow.sample(5, *given).shape == samples.shape
    if context is None:
        atol = 1e-4 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(flow.log_prob(samples), log_prob, atol=atol, rtol=0)
        # Noise has the digits of its dtype.
        noise = flow._distribution.sample(5)
        assert bool((noise.float() == noise).all()) == (dtype == torch.float32)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"features": 0}, "features"),
        ({"features": 2, "context_features": 0}, "context_features"),
        ({"features": 2, "context_features": "a"}, "context_features"),
        ({"features": 2, "hidden_features": [8, 0]}, r"hidden_features\[1\]"),
        ({"features": 2, "hidden_features": 3.5}, "hidden_features"),
        ({"features": 2, "hidden_features": "64"}, "hidden_features"),
    ],
)
def test_error_names_argument(options, name):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"Expected {name} "):
        IResNetTransform(**options)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda **own: iresnet_flow(2, hidden_features=8, **own), "hidden_features"),
        (lambda **own: conditional_iresnet_flow(2, 3, hidden_features=8, **own), "hidden_features"),
        (lambda **own: IResNetTransform(2, 8, **own), "hidden_features"),
        (lambda **own: iresnet_image_flow((1, 8, 8), hidden_channels=8, **own), "hidden_channels"),
    ],
)
def test_refuses_widths_of_two_names(make, name):
    with pytest.raises(ArgumentError, match=f"Expected {name} without hidden_dims, .*; got both"):
        make(hidden_dims=[8])


@pytest.mark.parametrize("between", [lambda _: 3, lambda size: torch.nn.Linear(size, size)])
def test_refuses_foreign_between(between):
    with pytest.raises(ArgumentTypeError, match="the result of between"):
        iresnet_flow(2, 2, between=between)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loads_into_a_flow_on_meta(assign, dtype):
    flow = iresnet_flow(2, 2, hidden_features=8).to(dtype).eval()
    with torch.device("meta"):
        other = iresnet_flow(2, 2, hidden_features=8).eval()
    if not assign:
        other = other.to(dtype).to_empty(device="cpu")
    other.load_state_dict(flow.state_dict(), assign=assign)
    x = torch.randn(5, 2, dtype=dtype)
    assert torch.equal(other.log_prob(x), flow.log_prob(x))
    drawn = other.sample(3)
    assert drawn.dtype == dtype
    assert drawn.device.type == "cpu"


def test_noise_refuses_another_size():
    with pytest.raises(ValueError, match=r"inputs of shape \(batch, 2\); got \(5, 3\)"):
        iresnet_flow(2, 1)._distribution.log_prob(torch.zeros(5, 3))


@pytest.mark.compiled
def test_samples_under_the_compiler():
    flow = iresnet_flow(2, 2, hidden_features=8).eval()
    assert torch.compile(flow.sample, backend="eager")(4).shape == (4, 2)


# ---------------------------------------------------------------------------- autocast


def conditional_flow_of_nflows():
    parts = [PatientActNorm(3), IResNetTransform(3, 8, context_features=2)]
    net = torch.nn.Linear(4, 2)
    return Flow(IResNetComposite([*parts, *parts[:1]]), StandardNormal([3]), net)


MIXED = {
    "linear": (lambda: iresnet_flow(3, 2, between=LULinear), []),
    "actnorm": (
        lambda: iresnet_flow(
            3, 2, between=lambda n: CompositeTransform([LULinear(n), PatientActNorm(n)])
        ),
        [],
    ),
    "net of nflows": (conditional_flow_of_nflows, [4]),
    "net": (lambda: conditional_iresnet_flow(3, 2, 2, embedding_net=torch.nn.Linear(4, 2)), [4]),
    "labels": (
        lambda: conditional_iresnet_flow(3, 2, 2, embedding_net=torch.nn.Embedding(7, 2)),
        [],
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_takes_dtype_of_autocast(name):
    torch.set_default_dtype(torch.float32)
    make, size = MIXED[name]
    flow, x = make(), torch.randn(32, 3)
    given = [torch.randn(32, *size)] if size else []
    given = [torch.arange(32) % 7] if name == "labels" else given
    expected = flow.log_prob(x, *given)
    flow.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        found = flow.log_prob(x, *given)
        noise = flow.eval().transform_to_noise(x, *given)
        back, _ = flow._transform.inverse(noise, *map(flow._embedding_net, given))
    found.mean().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.2, check_dtype=False)
    torch.testing.assert_close(back, x, rtol=0, atol=0.1, check_dtype=False)
    assert all(p.grad.isfinite().all() for p in flow.parameters() if p.grad is not None)


@pytest.mark.parametrize("make", [lambda: IResNetTransform(3), lambda: PatientActNorm(3)])
@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_autocast_opens_for_half_alone(make, method):
    torch.set_default_dtype(torch.float32)
    call, x = getattr(make(), method), torch.randn(4, 3)
    with pytest.raises(ArgumentTypeError, match="dtype"):
        call(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ArgumentTypeError, match="dtype"):
        call(x.double())

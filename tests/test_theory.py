"""The equations of the report, where no other test states them, and what the page says of them."""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch

import pyro_iresnet
from pyro_iresnet import (
    Contraction,
    Exact,
    FixedPoint,
    Linearization,
    PowerIteration,
    PowerSeries,
    ResidualBlock,
    SingularValue,
    Tanh,
    Triangular,
    solve,
    wrap,
)
from pyro_iresnet.linear_maps import Dense

from . import zoo

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "theory.md").read_text()
L = 0.8


class Turn(Contraction):
    """A quarter turn in the plane, and smaller."""

    event_shape, context_dim, lipschitz = (2,), None, L

    def lipschitz_bound(self):
        return torch.tensor(L)

    def forward(self, x, context=None):
        return L * torch.stack([-x[..., 1], x[..., 0]], -1)


def matrix(dim=4, norm=L):
    """A random matrix of this spectral norm, which is not normal."""
    a = torch.randn(dim, dim)
    return norm * a / torch.linalg.matrix_norm(a, ord=2)


def linear(a):
    """What is known of ``g(x) = A x`` at a point."""
    return Linearization(torch.zeros(1, len(a)), Dense(a))


def pairs(dim=zoo.DIM):
    return (torch.randn(200, dim), torch.randn(200, dim))


def distance(a, b):
    return (a - b).norm(dim=-1)


def logm(a):
    """The logarithm of a matrix without eigenvalues on the negative half-line."""
    values, vectors = torch.linalg.eig(a)
    return (vectors @ torch.diag(values.log()) @ torch.linalg.inv(vectors)).real


def all_signs(dim):
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dim)), dtype=torch.float64)


# --- Invertible: Eq. 1 to 11, 25 and 26 ----------------------------------------------------------


def test_a_block_adds_g_to_x():
    g, x = zoo.dense(), torch.randn(7, zoo.DIM)
    torch.testing.assert_close(ResidualBlock(g)(x), x + g(x))


def test_a_block_is_bi_lipschitz():
    block = ResidualBlock(zoo.dense(lipschitz=L))
    for scale in (1e-3, 1.0, 1e2):
        a, b = pairs()
        b = a + scale * b
        stretch = distance(block(a), block(b)) / distance(a, b)
        assert (stretch >= 1 - L - 1e-9).all()
        assert (stretch <= 1 + L + 1e-9).all()


def test_a_metric_stretches_by_its_condition():
    block = ResidualBlock(Turn(), metric=Triangular(spread=1.0))
    for p in block.coordinates.parameters():
        p.data += torch.randn_like(p)
    a, b = pairs(2)
    z = block.coordinates
    back = torch.stack([z.inverse(e) for e in torch.eye(2)], 1)
    condition = torch.linalg.cond(back)
    stretch = distance(block(a), block(b)) / distance(a, b)
    assert condition > 1.5
    assert (stretch >= (1 - L) / condition - 1e-9).all()
    assert (stretch <= 1 + condition * L + 1e-9).all()
    assert stretch.max() > 1 + L, "so that the condition is needed"
    inside = distance(z(block(a)), z(block(b))) / distance(z(a), z(b))
    assert (inside >= 1 - L - 1e-9).all()
    assert (inside <= 1 + L + 1e-9).all()


def test_a_network_is_its_layers():
    g, x = zoo.dense(hidden_dims=(8, 7), activation=Tanh), torch.randn(5, zoo.DIM)
    h = x
    for i, (layer, acting) in enumerate(zip(g.layers, g.acting().weights, strict=True)):
        h = h @ acting.weight.T + layer.bias
        h = g.activations[i](h) if i < 2 else h
    torch.testing.assert_close(g(x), h)


def test_the_constant_depends_on_the_weights_and_not_on_the_biases():
    g = zoo.dense(lipschitz=L)
    bound = g.lipschitz_bound()
    with torch.no_grad():
        for layer in g.layers:
            layer.bias.normal_(std=10.0)
    assert torch.equal(g.lipschitz_bound(), bound)
    a, b = pairs()
    assert (distance(g(a), g(b)) <= bound * distance(a, b)).all()


def test_the_stretch_of_a_small_step_is_that_of_the_jacobian():
    g, x = zoo.dense(), torch.randn(5, zoo.DIM)
    step = torch.randn(5, zoo.DIM)
    jacobian = g.linearize(x)
    for h in (1e-3, 1e-4):
        first_order = (g(x + h * step) - g(x)) / h
        assert (first_order - jacobian.mv(step)).norm() <= 50 * h


@pytest.mark.parametrize("shape", [(3, 6), (6, 3), (4, 4)])
def test_the_spectral_norm_is_the_largest_stretch(shape):
    weight = torch.randn(shape)
    norm = SingularValue().norm(weight)
    x = torch.randn(1000, shape[1])
    assert ((x @ weight.T).norm(dim=-1) <= norm * x.norm(dim=-1)).all()
    # It is attained, at the first right singular vector.
    v = torch.linalg.svd(weight).Vh[0]
    torch.testing.assert_close((weight @ v).norm(), norm * v.norm())
    # Eq. 25: the largest value of a quadratic form on the unit sphere.
    torch.testing.assert_close(v @ weight.T @ weight @ v, norm**2)


@pytest.mark.parametrize("shape", [(3, 6), (6, 3), (4, 4)])
def test_the_spectral_norm_is_the_root_of_the_largest_eigenvalue(shape):
    weight = torch.randn(shape)
    values, vectors = torch.linalg.eigh(weight.T @ weight)
    assert (values >= -1e-12).all()
    torch.testing.assert_close(SingularValue().norm(weight), values[-1].sqrt())
    # Eq. 26: in the basis of the eigenvectors a unit vector weighs the eigenvalues.
    x = torch.nn.functional.normalize(torch.randn(shape[1]), dim=0)
    weighed = (values * (vectors.T @ x) ** 2).sum()
    torch.testing.assert_close((weight @ x).square().sum(), weighed)
    assert weighed <= values[-1]


def test_the_largest_eigenvalue_is_the_spectral_norm_of_normal_matrices_and_not_of_all():
    a = torch.randn(4, 4)
    antisymmetric, rotation = a - a.T, torch.linalg.qr(a).Q
    for normal in (a + a.T, antisymmetric, rotation):
        torch.testing.assert_close(normal @ normal.T, normal.T @ normal)
        radius = torch.linalg.eigvals(normal).abs().max()
        torch.testing.assert_close(SingularValue().norm(normal), radius)
    # Both eigenvalues are 1/2, and it stretches by more than 10: no contraction.
    shear = torch.tensor([[0.5, 10.0], [0.0, 0.5]])
    assert torch.linalg.eigvals(shear).abs().max() == 0.5
    assert SingularValue().norm(shear) > 10


# --- The inverse: Eq. 12 to 15, 35 and 36 --------------------------------------------------------


@pytest.fixture
def iteration():
    """``g``, ``y`` and the first 60 iterates of Eq. 12 from ``y``."""
    g, y = zoo.dense(lipschitz=L), torch.randn(6, zoo.DIM)
    iterates = [y]
    for _ in range(60):
        iterates.append(y - g(iterates[-1]))
    return g, y, iterates


def test_the_iteration_converges_to_what_solve_finds(iteration):
    g, y, iterates = iteration
    limit = iterates[-1]
    torch.testing.assert_close(limit, y - g(limit), atol=1e-5, rtol=0)
    torch.testing.assert_close(limit + g(limit), y, atol=1e-5, rtol=0)
    torch.testing.assert_close(limit, solve(g, y, FixedPoint()).value, atol=1e-5, rtol=0)


def test_the_steps_shrink_as_equation_15_says(iteration):
    _, _, iterates = iteration
    first = distance(iterates[1], iterates[0])
    for n in range(60):
        assert (distance(iterates[n + 1], iterates[n]) <= L**n * first + 1e-12).all()


def test_the_sequence_is_cauchy_as_equation_35_says(iteration):
    _, _, iterates = iteration
    first = distance(iterates[1], iterates[0])
    for n, k in itertools.product(range(0, 30, 3), (1, 2, 5, 30)):
        apart = distance(iterates[n + k], iterates[n])
        assert (apart <= (1 - L**k) / (1 - L) * L**n * first + 1e-12).all()
        assert (1 - L**k) / (1 - L) <= 1 / (1 - L)


def test_the_error_shrinks_as_equation_36_says(iteration):
    g, y, iterates = iteration
    exact = solve(g, y, rtol=1e-14).value
    first = distance(iterates[1], iterates[0])
    for n, x in enumerate(iterates):
        error = distance(exact, x)
        assert (error <= L**n / (1 - L) * first + 1e-12).all()
        # What the certificate of a solve rests on, without the history.
        assert (error <= distance(x + g(x), y) / (1 - L) + 1e-12).all()


def test_the_bound_of_equation_36_is_attained():
    g = wrap(zoo.Scaled(-L, torch.eye(2)), bound=L)
    y = torch.ones(1, 2)
    x, exact, first = y, y / (1 - L), distance(y - g(y), y)
    for n in range(20):
        torch.testing.assert_close(distance(exact, x), L**n / (1 - L) * first)
        x = y - g(x)


# --- The log-determinant: Eq. 16 to 24, 27 to 31 -------------------------------------------------


def test_the_jacobian_of_a_block_is_that_of_g_and_one():
    block, x = ResidualBlock(zoo.dense()), torch.randn(4, zoo.DIM)
    whole = torch.func.vmap(torch.func.jacrev(lambda p: block(p[None])[0]))(x)
    ours = block.contraction.linearize(x).as_matrix()
    torch.testing.assert_close(whole, torch.eye(zoo.DIM) + ours)


def test_the_determinant_of_a_block_is_positive_and_bounded():
    for _ in range(50):
        a = matrix()
        sign, logabsdet = torch.linalg.slogdet(torch.eye(4) + a)
        assert sign == 1
        torch.testing.assert_close(Exact()(linear(a), lipschitz=L)[0], logabsdet)
        assert 4 * math.log(1 - L) <= logabsdet <= 4 * math.log(1 + L)


def test_the_log_determinant_is_the_trace_of_the_logarithm():
    a = matrix()
    trace = logm(torch.eye(4) + a).trace()
    torch.testing.assert_close(torch.linalg.matrix_exp(logm(torch.eye(4) + a)), torch.eye(4) + a)
    torch.testing.assert_close(Exact()(linear(a), lipschitz=L)[0], trace)


def partial_sum(a, terms):
    power, total = torch.eye(len(a)), torch.zeros_like(a)
    for n in range(1, terms + 1):
        power = power @ a
        total = total + (-1) ** (n - 1) * power / n
    return total


@pytest.mark.parametrize("terms", [1, 2, 5, 20, 60])
def test_the_series_of_the_logarithm_converges_as_its_bound_says(terms):
    a = matrix()
    off = partial_sum(a, terms) - logm(torch.eye(4) + a)
    bound = L ** (terms + 1) / ((terms + 1) * (1 - L))
    assert torch.linalg.matrix_norm(off, ord=2) <= bound + 1e-12


@pytest.mark.parametrize("terms", [1, 3, 8])
def test_the_error_of_the_cut_grows_with_the_dimension(terms):
    rest = -math.log1p(-L) - sum(L**k / k for k in range(1, terms + 1))
    for dim in (1, 10, 100):
        j = -L * torch.eye(dim)
        off = (partial_sum(j, terms).trace() - dim * math.log1p(-L)).abs()
        torch.testing.assert_close(off, torch.tensor(dim * rest))
        assert off <= PowerSeries(terms=terms).truncation_error(L, dim)


def test_a_probe_of_signs_gives_the_trace_on_average():
    a, u = matrix(6), all_signs(6)
    forms = ((u @ a) * u).sum(-1)
    torch.testing.assert_close(forms.mean(), a.trace())
    # What is left is the noise of the entries off the diagonal.
    off = a + a.T - 2 * torch.diag(a.diag())
    torch.testing.assert_close(forms.var(correction=0), off.square().sum() / 2)


def test_a_probe_of_normals_gives_the_trace_on_average():
    a = matrix(6)
    u = torch.randn(200_000, 6)
    forms = ((u @ a) * u).sum(-1)
    assert (forms.mean() - a.trace()).abs() < 4 * forms.std() / math.sqrt(len(forms))


@pytest.mark.parametrize("terms", [1, 2, 4])
def test_a_single_probe_is_unbiased_and_the_cut_is_not(terms):
    a, u = matrix(6), all_signs(6)
    estimates, v = torch.zeros(len(u)), u
    for n in range(1, terms + 1):
        v = v @ a.T
        estimates = estimates + (-1) ** (n - 1) * (u * v).sum(-1) / n
    torch.testing.assert_close(estimates.mean(), partial_sum(a, terms).trace())
    bias = estimates.mean() - torch.linalg.slogdet(torch.eye(6) + a).logabsdet
    assert 1e-4 < bias.abs() <= PowerSeries(terms=terms).truncation_error(L, 6)


def test_a_power_of_the_jacobian_is_never_formed():
    g, x, u = zoo.dense(), torch.randn(3, zoo.DIM), torch.randn(3, zoo.DIM)
    linearization = g.linearize(x)
    power, v = linearization.as_matrix(), u
    for n in range(1, 6):
        v = linearization.mv(v)
        expected = torch.einsum("bi,bij,bj->b", u, torch.linalg.matrix_power(power, n), u)
        torch.testing.assert_close((u * v).sum(-1), expected)


def test_the_determinant_of_an_exponential():
    a = torch.randn(4, 4)

    def f(t):
        return torch.linalg.det(torch.linalg.matrix_exp(t * a))

    for t in (-0.7, 0.0, 0.3, 1.0):
        at = torch.tensor(t, requires_grad=True)
        (slope,) = torch.autograd.grad(f(at), at)
        torch.testing.assert_close(slope, f(at).detach() * a.trace())
        torch.testing.assert_close(f(at).detach(), (t * a.trace()).exp())
    assert f(torch.tensor(0.0)) == 1
    b = torch.linalg.matrix_exp(0.3 * a)
    torch.testing.assert_close(torch.linalg.slogdet(b).logabsdet, logm(b).trace())


# --- Power iteration: Eq. 32 to 34 ---------------------------------------------------------------


def test_power_iteration_approaches_the_norm_from_below():
    weight, u = torch.randn(5, 4), torch.ones(4)
    norm = SingularValue().norm(weight)
    values = []
    for _ in range(200):
        u = torch.nn.functional.normalize(weight.T @ (weight @ u), dim=0)
        values.append(u @ weight.T @ weight @ u)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
    assert max(values) <= norm**2 * (1 + 1e-12)
    torch.testing.assert_close(values[-1], norm**2)


def test_its_two_forms_are_one():
    weight = torch.randn(5, 4)
    u = torch.linspace(1.0, 2.0, 5)  # where PowerIteration starts
    for _ in range(7):
        v = torch.nn.functional.normalize(weight.T @ u, dim=0)
        u = torch.nn.functional.normalize(weight @ v, dim=0)
    torch.testing.assert_close(PowerIteration(steps=7).norm(weight), u @ weight @ v)
    # The step of Eq. 32 is two half steps of Eq. 34.
    torch.testing.assert_close(
        torch.nn.functional.normalize(weight.T @ u, dim=0),
        torch.nn.functional.normalize(weight.T @ weight @ v, dim=0),
    )


def test_a_start_of_ones_may_miss_the_largest_singular_value():
    # Leading singular vectors (1, -1) with 3, and (1, 1) with 1.
    weight = torch.tensor([[2.0, -1.0], [-1.0, 2.0]])
    u = torch.ones(2)
    for _ in range(100):
        u = torch.nn.functional.normalize(weight @ u, dim=0)
    torch.testing.assert_close(u @ weight @ u, torch.tensor(1.0))
    torch.testing.assert_close(PowerIteration(steps=100).norm(weight), torch.tensor(3.0))


# --- The page ------------------------------------------------------------------------------------


def test_the_page_has_every_equation_and_both_theorems_in_the_order_of_the_report():
    numbers = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", PAGE)]
    assert sorted(numbers) == list(range(1, 37))
    main, appendix = numbers[:24], numbers[24:]
    assert main == list(range(1, 25))
    assert appendix == list(range(25, 37))
    assert re.findall(r"\*\*Theorem (\d)\.\*\*", PAGE) == ["1", "2"]


def test_every_equation_of_the_page_names_a_test_and_every_test_exists():
    sections = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    for section in sections:
        if "\\tag{" in section:
            assert "tests/test_" in section, section.splitlines()[0]
    named = re.findall(r"`(tests/test_\w+\.py)::(\w+)`", PAGE)
    assert named
    for path, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (path, name)


def test_every_name_of_the_page_exists():
    linked = re.findall(r"\[`([\w.]+)`\]\(reference/(\w+)\.md#([\w.]+)\)", PAGE)
    assert len(linked) > 20
    for shown, page, target in linked:
        found = pyro_iresnet
        for part in shown.split("."):
            found = getattr(found, part)
        assert target.endswith(f".{shown}"), (shown, target)
        generated = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
        assert f"::: {target.removesuffix('.truncation_error')}\n" in generated, target
    for name, path in re.findall(r"`(\w+)` in `(pyro_iresnet/[\w/]+\.py)`", PAGE):
        code = (ROOT / path).read_text()
        assert re.search(rf"^ *(def|class) {name}\b", code, re.MULTILINE), (path, name)

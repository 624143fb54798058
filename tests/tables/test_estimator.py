"""Fit, score, sample, save and load of tables."""

import copy
import math
import os
import stat

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra train")

from lightning.pytorch.callbacks import Callback
from sklearn.base import clone
from sklearn.utils.estimator_checks import estimator_checks_generator

from pyro_iresnet.errors import ArgumentError, ArgumentTypeError, IResNetError
from pyro_iresnet.norms import Gram
from pyro_iresnet.options import BlockOptions
from pyro_iresnet.tables import Category, DensityEstimator, HeavyTailed, Integer, Real
from pyro_iresnet.training import NonFiniteLossError

SHORT = {"num_blocks": 1, "hidden_features": 8, "max_steps": 20, "progress": False}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    n = 300
    return pd.DataFrame(
        {
            "small": 1e-6 * rng.normal(size=n),
            "large": 1e4 * rng.normal(size=n),
            "tail": rng.standard_t(2, size=n),
            "share": rng.beta(2, 3, size=n),
            "visits": rng.poisson(3, size=n),
            "positive": np.exp(2 * rng.normal(size=n)).astype(np.float32),
            "kind": rng.choice(["a", "b", "c"], size=n),
            "yes": rng.random(n) < 0.3,
            "rating": rng.integers(1, 6, size=n).astype(np.int16),
            "level": pd.Categorical(rng.choice(["low", "high"], size=n)),
        }
    )


@pytest.fixture(scope="module")
def fitted(table):
    torch.manual_seed(0)
    return DensityEstimator(**SHORT).fit(table)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "check"),
    estimator_checks_generator(DensityEstimator(**{**SHORT, "max_steps": 3})),
)
def test_scikit_learn(estimator, check):
    check(estimator)


def test_clone(fitted):
    assert clone(fitted).get_params() == fitted.get_params()


def test_recognises_columns(fitted):
    kinds = {column.name: column.kind for column in fitted.encoding_.columns}
    assert kinds["small"] == kinds["large"] == Real()
    assert kinds["tail"] == HeavyTailed()
    assert kinds["share"] == Real(0.0, 1.0)
    assert kinds["positive"] == Real(low=0.0)
    assert kinds["visits"] == Integer(low=0)
    assert kinds["rating"] == Integer(1, 5)
    assert kinds["kind"] == Category(("a", "b", "c"))
    assert kinds["yes"] == Category((False, True))
    assert kinds["level"] == Category(("high", "low"))


def test_samples_look_like_the_table(fitted, table):
    drawn = fitted.sample(2000)
    assert list(drawn.columns) == list(table.columns)
    for name in table.columns.drop(["kind", "level"]):
        assert drawn[name].dtype == table[name].dtype
    assert set(drawn["kind"]) <= {"a", "b", "c"}
    assert (drawn["positive"] > 0).all()
    assert drawn["share"].between(0, 1, inclusive="neither").all()
    assert (drawn["visits"] >= 0).all()
    assert drawn["rating"].between(1, 5).all()
    assert np.isfinite(fitted.score_samples(drawn)).all()


def test_samples_follow_torch_seed(fitted):
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(fitted.sample(5))
    assert draws[0].equals(draws[1])
    assert not draws[0].equals(draws[2])


def test_density_integrates_to_one():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    n = 400
    x = pd.DataFrame(
        {"x": 50 + 3 * rng.normal(size=n), "k": rng.poisson(2, n), "g": rng.choice(["a", "b"], n)}
    )
    estimator = DensityEstimator(**SHORT).fit(x)
    grid = np.linspace(20, 80, 400)
    values = [(a, k, g) for a in grid for k in range(40) for g in "ab"]
    scores = estimator.score_samples(pd.DataFrame(values, columns=["x", "k", "g"]))
    mass = np.exp(scores).sum() * (grid[1] - grid[0])
    # A few points stand for the interval of each integer.
    assert mass == pytest.approx(1, abs=0.02)


def test_outside_the_limits_is_impossible(fitted, table):
    rows = table.head(3).assign(share=[0.5, 1.5, -0.1])
    scores = fitted.score_samples(rows)
    assert math.isfinite(scores[0])
    assert (scores[1:] == -math.inf).all()


def test_units(table):
    """A unit a thousand times as small makes densities a thousand times as large."""
    scores = []
    for unit in (1.0, 1000.0):
        torch.manual_seed(0)
        x = unit * table[["large"]]
        scores.append(DensityEstimator(**SHORT).fit(x).score(x))
    assert scores[0] - scores[1] == pytest.approx(math.log(1000), abs=1e-6)


def test_order_of_columns(fitted, table):
    assert (fitted.score_samples(table) == fitted.score_samples(table[table.columns[::-1]])).all()


def test_array():
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(50, 2))
    estimator = DensityEstimator(**SHORT).fit(x)
    assert isinstance(estimator.sample(3), np.ndarray)
    assert estimator.sample(3).shape == (3, 2)
    with pytest.raises(ArgumentError, match="expecting 2 features"):
        estimator.score_samples(x[:, :1])


@pytest.mark.parametrize("ending", ["csv", "parquet", "npy"])
def test_files(ending, tmp_path):
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"])
    path = tmp_path / f"x.{ending}"
    match ending:
        case "csv":
            x.to_csv(path, index=False)
        case "parquet":
            x.to_parquet(path)
        case _:
            np.save(path, x.to_numpy())
    scores = []
    for given in (x.to_numpy() if ending == "npy" else x, path, str(path)):
        torch.manual_seed(0)
        scores.append(DensityEstimator(**SHORT).fit(given).score_samples(given))
    assert np.allclose(scores[0], scores[1], atol=1e-8)
    assert (scores[1] == scores[2]).all()


def test_context():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    group = rng.choice(["left", "right"], size=600)
    x = pd.DataFrame({"x": np.where(group == "left", -5.0, 5.0) + rng.normal(size=600)})
    given = pd.DataFrame({"group": group})
    estimator = DensityEstimator(**{**SHORT, "max_steps": 200}).fit(x, context=given)
    drawn = estimator.sample(200, context=pd.DataFrame({"group": ["left", "right"]}))
    assert drawn["x"][:200].mean() < -3
    assert drawn["x"][200:].mean() > 3
    other = given.replace({"left": "right", "right": "left"})
    assert estimator.score(x, context=given) > estimator.score(x, context=other) + 1
    for call in (estimator.score_samples, estimator.score):
        with pytest.raises(ArgumentError, match="context"):
            call(x)
    with pytest.raises(ArgumentError, match="got 'up'"):
        estimator.sample(1, context=pd.DataFrame({"group": ["up"]}))
    with pytest.raises(ArgumentError, match="for each row"):
        estimator.score(x, context=given.head(3))


def test_keeps_the_best(table):
    torch.manual_seed(0)
    estimator = DensityEstimator(**{**SHORT, "max_steps": 400, "learning_rate": 0.05})
    estimator.fit(table[["tail", "share"]])
    history = estimator.history_
    assert len(history.steps) == len(history.train) == len(history.validation)
    best = -estimator.held_out_scores_.mean()
    assert best == pytest.approx(min(history.validation), abs=0.02)
    assert history.plot().get_xlabel() == "step"


def test_losses_in_units_of_the_table():
    """Train on two sets of rows whose units differ: the losses differ by their own slopes."""
    rows = torch.randn(400, 2).mul(2).exp().double().numpy()
    estimator = DensityEstimator({"x0": Real(low=0.0), "x1": Real(low=0.0)}, **SHORT).fit(rows)
    encoding, history = estimator.encoding_, estimator.history_
    slope = encoding.encode(torch.from_numpy(rows))[1]
    held_out = len(estimator.held_out_scores_)
    total = held_out * history.slope + (400 - held_out) * history.train_slope
    assert total == pytest.approx(float(slope.sum()))
    assert history.slope != history.train_slope


@pytest.mark.parametrize(("rows", "parts"), [(199, 1), (200, 3)])
def test_no_actnorms_in_a_small_table(rows, parts, tmp_path):
    x = np.random.default_rng(0).normal(size=(rows, 2))
    estimator = DensityEstimator(**{**SHORT, "max_steps": 1}).fit(x)
    assert len(estimator.flow_._transform._transforms) == parts
    assert (estimator.model_.options.coordinates is None) == (parts == 1)
    estimator.save(tmp_path / "model.pt")
    loaded = DensityEstimator.load(tmp_path / "model.pt")
    assert np.array_equal(loaded.score_samples(x), estimator.score_samples(x))


def test_threshold(fitted, table):
    share = (fitted.score_samples(table) < fitted.threshold(0.2)).mean()
    assert 0.05 < share < 0.4
    with pytest.raises(ArgumentError, match="share"):
        fitted.threshold(2.0)


REFUSED = {
    "missing": ({"a": [1.0, math.nan] * 10}, "in 10 rows.*2, 4, 6"),
    "infinite": ({"a": [1.0, math.inf] * 10}, "infinity.*2, 4"),
    "constant": ({"a": [1.5] * 20, "b": range(20)}, "'a' is 1.5 in every row"),
    "negative constant": ({"a": [-1.5] * 20, "b": range(20)}, "'a' is -1.5 in every row"),
    "declared constant": ({"declared": [1.5] * 20}, "'declared' is 1.5 in every row"),
    "copy": ({"a": np.arange(20) ** 0.5, "b": 2 * np.arange(20) ** 0.5}, "a, b have one"),
    "one row": ({"a": [1.0]}, "10 rows.*n_samples=1"),
    "names": ({"a": [f"name {i}" for i in range(40)]}, "40 labels in 40 rows"),
    "dates": ({"a": pd.date_range("2000-01-01", periods=20)}, "days since"),
    "large integers": ({"a": [2**60 + i for i in range(20)]}, "2\\^53"),
    "complex": ({"a": [1j] * 20}, "complex"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_tables(name):
    columns, words = REFUSED[name]
    kinds = {"declared": Real()} if "declared" in columns else None
    with pytest.raises(IResNetError, match=words):
        DensityEstimator(kinds, **SHORT).fit(pd.DataFrame(columns))


def test_refuses_two_columns_of_one_name():
    x = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 2)), columns=["a", "a"])
    with pytest.raises(ArgumentError, match="given twice: a"):
        DensityEstimator(**SHORT).fit(x)


def test_refuses_other_columns(fitted, table):
    with pytest.raises(ArgumentError, match="missing: small; not known: tiny"):
        fitted.score_samples(table.rename(columns={"small": "tiny"}))


def test_refuses_new_labels(fitted, table):
    with pytest.raises(ArgumentError, match=r"'kind'.*got 'z'"):
        fitted.score_samples(table.head(2).assign(kind=["a", "z"]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": {"x": Real()}}, "name columns of the table.*got 'x'"),
        ({"columns": {"large": Real(low=0.0)}}, "'large'.*holds"),
        ({"columns": {"large": "real"}}, "columns\\['large'\\]"),
        ({"columns": [Real()]}, "columns to be a dict"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"max_steps": 0}, "max_steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"validation_fraction": 1.5}, "validation_fraction"),
        ({"patience": 0}, "patience"),
    ],
)
def test_refuses_options(table, options, words):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=words):
        DensityEstimator(**{**SHORT, **options}).fit(table[["large"]])


def test_interrupt_keeps_the_best(table):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 50:
                raise KeyboardInterrupt

    torch.manual_seed(0)
    estimator = DensityEstimator(**{**SHORT, "max_steps": 400}, trainer={"callbacks": [Stop()]})
    estimator.fit(table[["large"]])
    assert estimator.history_.steps[-1] < 50
    assert math.isfinite(estimator.score(table[["large"]]))


def test_save(fitted, table, tmp_path):
    path = tmp_path / "model.pt"
    fitted.save(path)
    loaded = DensityEstimator.load(path)
    assert (loaded.score_samples(table) == fitted.score_samples(table)).all()
    assert loaded.get_params() == fitted.get_params()
    assert loaded.history_.steps == fitted.history_.steps
    assert loaded.threshold(0.1) == fitted.threshold(0.1)
    for made in (fitted, loaded):
        torch.manual_seed(3)
        made.drawn = made.sample(4)
    assert loaded.drawn.equals(fitted.drawn)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_keeps_permissions(fitted, tmp_path):
    path, private = tmp_path / "model.pt", tmp_path / "private.pt"
    private.touch(0o600)
    mask = os.umask(0o027)
    try:
        fitted.save(path)
        fitted.save(private)
    finally:
        os.umask(mask)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, private)]
    assert modes == [0o640, 0o600]


def test_scores_of_broken_flow(fitted, table):
    far = table.assign(large=1e300)
    assert (fitted.score_samples(far) == -np.inf).all()
    broken = copy.deepcopy(fitted)
    with torch.no_grad():
        next(broken.model_.flow.parameters()).fill_(math.nan)
    with pytest.raises(IResNetError, match="Expected finite parameters of the flow"):
        broken.score_samples(table)


def test_saves_options(table, tmp_path):
    torch.manual_seed(0)
    options = BlockOptions(norm=Gram(), lipschitz=0.8)
    kinds = {"visits": Integer(low=0), "kind": Category()}
    estimator = DensityEstimator(kinds, **SHORT, options=options)
    estimator.fit(table[["visits", "kind"]], context=table[["rating", "level"]])
    estimator.save(tmp_path / "m")
    loaded = DensityEstimator.load(tmp_path / "m")
    assert loaded.options == options
    assert loaded.columns == kinds
    context = table[["rating", "level"]]
    assert loaded.score(table[["visits", "kind"]], context=context) == estimator.score(
        table[["visits", "kind"]], context=context
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-100], "checksum"),
        (lambda data: data[:-9] + b"x" + data[-8:], "checksum"),
        (lambda data: data[:30], "another kind of file"),
        (lambda data: b"PK" + data, "another kind of file"),
        (lambda data: b"", "another kind of file"),
        (lambda data: data.replace(b'"format": 1', b'"format": 9'), "format 9, of version"),
    ],
)
def test_refuses_files(fitted, tmp_path, change, words):
    path = tmp_path / "m"
    fitted.save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArgumentError, match=words):
        DensityEstimator.load(path)


def test_refuses_no_file(tmp_path):
    with pytest.raises(ArgumentError, match="there is none"):
        DensityEstimator.load(tmp_path / "none")


def test_stops_at_a_loss_that_is_not_finite(table):
    torch.manual_seed(0)
    with pytest.raises(NonFiniteLossError, match="rows of the table") as caught:
        DensityEstimator(**{**SHORT, "learning_rate": 1e200}).fit(table[["large", "tail"]])
    assert caught.value.rows
    assert set(caught.value.rows) <= set(range(1, len(table) + 1))

"""Dtypes, labels, files and threads at the edge of what a table may be."""

import threading

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra train")

from pyro_iresnet.errors import ArgumentError, IResNetError
from pyro_iresnet.tables import Category, DensityEstimator, Integer, Real

SHORT = {"num_blocks": 1, "hidden_features": 8, "max_steps": 20, "progress": False}
RNG = np.random.default_rng(0)
N = 200


def fitted(table, kinds=None, **options):
    torch.manual_seed(0)
    return DensityEstimator(kinds, **{**SHORT, **options}).fit(table)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "Int8", "int8[pyarrow]", "float32", "Float64"])
def test_narrow_dtypes(dtype):
    values = pd.Series(np.clip(RNG.normal(100, 12, N), 0, 127).astype("int8")).astype(dtype)
    drawn = fitted(pd.DataFrame({"a": values})).sample(3000)["a"]
    assert drawn.dtype == values.dtype
    assert drawn.between(30, 200).mean() > 0.999


def test_real_column_of_integers_is_not_cut():
    kinds = {"a": Real(low=0.0)}
    drawn = fitted(pd.DataFrame({"a": RNG.integers(1, 6, N)}), kinds).sample(500)["a"]
    assert drawn.dtype == np.float64
    assert (drawn > 0).all()


@pytest.mark.parametrize("given", [["1.5", "2.5", "x", "y"] * 25, [True, False] * 50])
def test_refuses_numbers_for_labels(given):
    with pytest.raises(ArgumentError, match="declared as Integer"):
        fitted(pd.DataFrame({"c": given}), {"c": Integer()})


def test_constant_integers():
    drawn = fitted(pd.DataFrame({"a": [3] * N, "b": RNG.normal(size=N)})).sample(200)
    assert (drawn["a"] == 3).mean() > 0.5


def test_labels_of_files_are_text(tmp_path):
    path, few = tmp_path / "x.csv", tmp_path / "few.csv"
    path.write_text("g\nx\n" + "1\n2\n" * 30)
    few.write_text("g\n1\n2\n")
    made = fitted(path)
    assert made.encoding_.columns[0].kind == Category(("1", "2", "x"))
    assert np.isfinite(made.score_samples(few)).all()


def test_categories_keep_their_order(tmp_path):
    column = pd.Categorical(RNG.choice(["lo", "hi"], N), ["lo", "hi"], ordered=True)
    made = fitted(pd.DataFrame({"c": column}))
    made.save(tmp_path / "m")
    for each in (made, DensityEstimator.load(tmp_path / "m")):
        assert each.sample(20)["c"].dtype == column.dtype


def test_labels_keep_their_dtype():
    drawn = fitted(pd.DataFrame({"k": RNG.integers(0, 5, N)}), {"k": Category()}).sample(20)
    assert drawn["k"].dtype == np.int64


@pytest.mark.parametrize(
    "given",
    [[1 + 1j, 2], pd.date_range("2020", periods=2), pd.to_timedelta([1, 2], "s"), ["1.5", "2"], []],
    ids=["complex", "dates", "spans", "text", "nothing"],
)
def test_checks_types_of_scored_columns(given):
    made = fitted(pd.DataFrame({"b": RNG.normal(size=N)}))
    with pytest.raises(IResNetError, match="Expected"):
        made.score_samples(pd.DataFrame({"b": given}))


def test_refuses_masked_cells():
    masked = np.ma.masked_array(RNG.normal(size=(50, 2)), mask=RNG.random((50, 2)) < 0.3)
    with pytest.raises(ArgumentError, match="'x0'"):
        fitted(masked)


def test_far_out_rows_are_impossible():
    made = fitted(pd.DataFrame({"b": RNG.normal(size=N)}))
    assert (made.score_samples(pd.DataFrame({"b": [1e308, -1e308]})) == -np.inf).all()


def test_refuses_decimal_commas(tmp_path):
    (tmp_path / "x.csv").write_text("a;b\n" + "1,5;2\n2,5;3\n" * 10)
    with pytest.raises(ArgumentError, match="decimal"):
        fitted(tmp_path / "x.csv")


def test_file_without_header_that_begins_with_0(tmp_path):
    (tmp_path / "x.csv").write_text("0\n" + "".join(f"{k}\n" for k in RNG.poisson(2, 59)))
    assert len(fitted(tmp_path / "x.csv").score_samples(tmp_path / "x.csv")) == 60


def test_fits_in_a_thread():
    table, found = pd.DataFrame({"b": RNG.normal(size=N)}), []
    thread = threading.Thread(target=lambda: found.append(fitted(table)))
    thread.start()
    thread.join()
    assert np.isfinite(found[0].score(table))


def test_saves_scalars_of_numpy(tmp_path):
    table = pd.DataFrame({"g": RNG.choice(["u", "v"], N)})
    kinds = {np.str_("g"): Category((np.str_("u"), np.str_("v")))}
    options = {"num_blocks": np.int64(1), "hidden_features": np.int64(8)}
    made = fitted(table, kinds, **options, learning_rate=np.float64(1e-3))
    made.save(tmp_path / "m")
    assert DensityEstimator.load(tmp_path / "m").score(table) == made.score(table)


def test_refuses_a_changed_header(tmp_path):
    fitted(pd.DataFrame({"b": RNG.normal(size=N)})).save(tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(data.replace(b'"format": 1', b'"format": 0'))
    with pytest.raises(ArgumentError, match="checksum"):
        DensityEstimator.load(tmp_path / "m")


def test_integer_names():
    made = fitted(pd.DataFrame(RNG.normal(size=(50, 2))), {0: Real()})
    assert list(made.sample(2).columns) == ["0", "1"]


def test_keeps_rows_to_train():
    assert np.isfinite(
        fitted(RNG.normal(size=(20, 1)), validation_fraction=0.999)
        .flow_.log_prob(torch.zeros(1, 1, dtype=torch.float64))
        .item()
    )

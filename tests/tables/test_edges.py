"""Dtypes, labels, files and threads at the edge of what a table may be."""

import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra train")

from lightning.pytorch.callbacks import Timer

from pyro_iresnet.errors import ArgumentError, IResNetError
from pyro_iresnet.tables import Category, DensityEstimator, Integer, Real, files
from pyro_iresnet.tables.recognition import recognised

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
    with pytest.warns(UserWarning, match="holds 5 numbers alone"):
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


@pytest.mark.parametrize("unit", [1e20, 1.7e18])
def test_large_real_numbers_are_no_integers(unit):
    table = pd.DataFrame({"a": unit * np.exp(0.1 * RNG.normal(size=N))})
    estimator = fitted(table)
    assert estimator.encoding_.columns[0].kind == Real(low=0.0)
    assert estimator.sample(500)["a"].between(0.5 * unit, 2 * unit).all()


def test_objects_that_are_numbers():
    table = pd.DataFrame({"a": RNG.normal(size=N), "n": RNG.integers(0, 5, N)}).astype(object)
    drawn = fitted(table).sample(50)
    assert [str(dtype) for dtype in drawn.dtypes] == ["float64", "int64"]


@pytest.mark.parametrize("dtype", ["float[pyarrow]", "double[pyarrow]", "Float32"])
def test_dtypes_of_real_numbers(dtype):
    drawn = fitted(pd.DataFrame({"a": RNG.normal(size=N)}).astype(dtype)).sample(20)
    assert str(drawn["a"].dtype) == str(pd.Series([0.0], dtype=dtype).dtype)


@pytest.mark.filterwarnings("error")
def test_draws_narrow_dtypes_without_warning():
    assert fitted(torch.randn(N, 2).float()).sample(5).dtype == np.float32


def test_warns_of_one_number_in_many_rows():
    with pytest.warns(UserWarning, match=r"of the column 'rain' are 0, where a density"):
        fitted(pd.DataFrame({"rain": RNG.normal(size=N).clip(min=0.0)}))


def test_names_a_column_of_one_label():
    with pytest.raises(ArgumentError, match="columns that vary; 'k' is 'x' in every row"):
        fitted(pd.DataFrame({"a": RNG.normal(size=N), "k": "x"}))


def test_refuses_a_name_given_twice_behind_spaces(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a, a\n" + "".join(f"{i}.5, {i * i}.5\n" for i in range(20)))
    with pytest.raises(ArgumentError, match="given twice: a"):
        fitted(path)


def test_load_leaves_the_generator(tmp_path):
    estimator = fitted(RNG.normal(size=(N, 2)), hidden_features=[np.int64(8)])
    estimator.save(tmp_path / "model.pt")
    before = torch.get_rng_state()
    loaded = DensityEstimator.load(tmp_path / "model.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.hidden_features == [8]


def test_refuses_fields_of_another_version(tmp_path):
    fitted(RNG.normal(size=(N, 2))).save(tmp_path / "model.pt")
    content = files.load(tmp_path / "model.pt")
    content["model"].pop("has_actnorms")
    files.write(tmp_path / "other.pt", content, "0.0.1")
    with pytest.raises(ArgumentError, match="its fields are others"):
        DensityEstimator.load(tmp_path / "other.pt")


@pytest.mark.parametrize("name", [".", "missing/model.pt"])
def test_refuses_to_save_where_no_file_can_be(tmp_path, name):
    estimator = fitted(RNG.normal(size=(N, 2)), max_steps=1)
    with pytest.raises(ArgumentError, match="a file in a folder that is there"):
        estimator.save(tmp_path / name)


@pytest.mark.parametrize("options", [{"enable_checkpointing": False}, {"barebones": True}])
def test_refuses_trainers_without_checkpoints(options):
    with pytest.raises(ArgumentError, match="to leave checkpoints on"):
        fitted(RNG.normal(size=(N, 2)), trainer=options)


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"callbacks": Timer()}])
def test_takes_options_of_the_trainer(options):
    estimator = fitted(RNG.normal(size=(N, 2)), trainer=options)
    assert np.isfinite(estimator.score_samples(RNG.normal(size=(5, 2)))).all()


def test_fraction_in_a_column_of_integers_is_told():
    table = pd.DataFrame({"p": np.arange(200) % 50.0})
    fitted = DensityEstimator(**SHORT).fit(table)
    with pytest.warns(UserWarning, match=r"'p'.*1 rows of X.*50\.5.*Real\(\)"):
        scores = fitted.score_samples(pd.DataFrame({"p": [50.5, 30.0]}))
    assert scores[0] == -np.inf
    assert np.isfinite(scores[1])


@pytest.mark.parametrize(("zeros", "warns"), [(0, False), (4, False), (20, True), (100, True)])
def test_heap_of_zeros_is_told(zeros, warns):
    x = np.exp(np.random.default_rng(0).normal(size=400))
    x[:zeros] = 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DensityEstimator(**SHORT).fit(pd.DataFrame({"rain": x}))
    assert any("are 0" in str(w.message) for w in caught) is warns


@pytest.mark.parametrize(("rows", "warns"), [(9, False), (15, False), (40, True)])
def test_heap_inside_is_told(rows, warns):
    """A heap that lies at neither end has to be larger."""
    x = np.random.default_rng(0).normal(size=400)
    x[:rows] = 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DensityEstimator(**SHORT).fit(pd.DataFrame({"rain": x}))
    assert any("are 0" in str(w.message) for w in caught) is warns


def test_items_of_one_scale():
    """Items with the same ends have the same limits, whether or not each heaps there."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=600)
    items = {
        f"q{i}": np.clip(np.round(3 + 1.2 * z + 0.4 * rng.normal(size=600)), 1, 5).astype(int)
        for i in range(4)
    }
    table = pd.DataFrame({**items, "visits": rng.poisson(2, 600)})
    alone = [recognised(table[name].to_numpy(float), is_integer=True) for name in items]
    assert len(set(alone)) > 1
    columns = DensityEstimator(**SHORT).fit(table).columns_
    assert columns == {**dict.fromkeys(items, Integer(1, 5)), "visits": Integer(low=0)}


def test_rounded_numbers_are_no_heap():
    x = np.random.default_rng(0).normal(size=400).round(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        DensityEstimator(**SHORT).fit(pd.DataFrame({"x": x}))


def test_table_in_the_place_of_y_is_told():
    table = pd.DataFrame({"a": np.random.default_rng(0).normal(size=50)})
    with pytest.warns(UserWarning, match=r"ignores y; got one of shape \(50, 1\).*context"):
        DensityEstimator(**SHORT).fit(table, table)


def test_context_in_another_order_is_refused():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 2)), columns=["a", "b"])
    shuffled = table[["b"]].sample(frac=1, random_state=0)
    with pytest.raises(ArgumentError, match=r"context\.loc\[X\.index\]"):
        DensityEstimator(**SHORT).fit(table[["a"]], context=shuffled)
    fitted = DensityEstimator(**SHORT).fit(table[["a"]], context=table[["b"]])
    with pytest.raises(ArgumentError, match=r"context\.loc\[X\.index\]"):
        fitted.score_samples(table[["a"]], shuffled)
    # Other labels say nothing about the order.
    reset = shuffled.set_axis(range(100, 150))
    assert np.isfinite(fitted.score(table[["a"]], context=reset))


def test_codes_of_a_context_are_labels():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=90), "c": np.arange(90) % 3})
    fitted = DensityEstimator({"c": Category()}, **SHORT)
    fitted.fit(table[["a"]], context=table[["c"]])
    (column,) = fitted.model_.context
    assert column.labels == (0, 1, 2)
    assert np.isfinite(fitted.score(table[["a"]], context=table[["c"]]))
    with pytest.raises(ArgumentError, match="'d'"):
        DensityEstimator({"d": Category()}, **SHORT).fit(table[["a"]], context=table[["c"]])


def test_more_points():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(300, 1))
    ratings = np.clip(np.round(3 + common + 0.3 * rng.normal(size=(300, 20))), 1, 5).astype(int)
    fitted = DensityEstimator(**SHORT | {"max_steps": 100}).fit(pd.DataFrame(ratings))
    scores = [fitted.score_samples(ratings[:20], points=n).mean() for n in (4, 32, 1024)]
    assert scores[0] < scores[1] < scores[2]
    with pytest.raises(ArgumentError, match="points"):
        fitted.score_samples(ratings, points=0)


@pytest.mark.parametrize("ordered", [True, False])
def test_categories_without_rows_stay(ordered, tmp_path):
    sizes = pd.Categorical(RNG.choice(["S", "L"], N), ["S", "M", "L"], ordered=ordered)
    table = pd.DataFrame({"a": RNG.normal(size=N), "size": sizes})
    estimator = fitted(table)
    estimator.save(tmp_path / "model.pt")
    for each in (estimator, DensityEstimator.load(tmp_path / "model.pt")):
        drawn = each.sample(50)
        assert drawn["size"].dtype == table["size"].dtype
        assert set(drawn["size"]) == {"S", "L"}
        assert pd.concat([table, drawn])["size"].dtype == table["size"].dtype


def test_fits_in_inference_mode():
    x = RNG.normal(size=(N, 2))
    with torch.inference_mode():
        inside = fitted(x)
        assert torch.is_inference_mode_enabled()
    assert inside.score(x) == fitted(x).score(x)


def test_takes_bfloat16():
    x = torch.randn(N, 2, dtype=torch.bfloat16)
    estimator = fitted(x)
    assert estimator.sample(3).dtype == np.float32
    assert (estimator.score_samples(x) == estimator.score_samples(x.float())).all()


def test_no_rows():
    table = pd.DataFrame({"a": RNG.normal(size=N), "b": RNG.choice(["x", "y"], N)})
    made = fitted(table)
    for empty in (table.iloc[:0], table.to_numpy()[:0]):
        with pytest.raises(ArgumentError, match="Expected rows in X; got 0"):
            made.score_samples(empty)

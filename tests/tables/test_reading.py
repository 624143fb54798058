"""Reading of files: delimiters, headers, parts, and faults."""

import gzip
import tracemalloc
import types
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

pytest.importorskip("lightning", reason="needs the extra train")

from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.tables import Category, DensityEstimator, Integer
from pyro_iresnet.tables import reading as module
from pyro_iresnet.tables.reading import source_of
from pyro_iresnet.tables.rows import fixed, read


def table_of(text, tmp_path, name="x.csv"):
    path = tmp_path / name
    path.write_text(text)
    return pd.concat(source_of(path).parts())


LINES = [f"{i},{i * i}" for i in range(12)]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_delimiters(mark, tmp_path):
    text = "\n".join(["a,b", *LINES]).replace(",", mark)
    frame = table_of(text, tmp_path)
    assert list(frame.columns) == ["a", "b"]
    assert frame["b"].tolist() == [i * i for i in range(12)]


@pytest.mark.parametrize(
    ("first", "names"),
    [
        ("a,b", ["a", "b"]),
        ('"a, of x","b"', ["a, of x", "b"]),
        ("0,1", ["0", "1"]),
        ("7,8", ["x0", "x1"]),
    ],
)
def test_headers(first, names, tmp_path):
    frame = table_of("\n".join([first, *LINES]), tmp_path)
    assert [str(name) for name in frame.columns] == names
    assert len(frame) == 12 + (first == "7,8")


def test_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 5)
    frame = pd.DataFrame({"a": np.arange(12.0), "b": list("xyxyxyxyxyxz")})
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    for given in (frame, tmp_path / "x.csv", tmp_path / "x.parquet"):
        source = source_of(given)
        assert max(map(len, source.parts())) == 5
        rows = read(source, {}, tmp_path / "scratch")
        assert rows.labels == (None, ("x", "y", "z"))
        assert (rows.values[:, 0] == np.arange(12)).all()
        assert rows.values[-1, 1] == 2


def test_reads_tables_of_other_packages():
    frame = pd.DataFrame({"a": np.arange(12.0), "b": np.arange(12)})
    source = source_of(pa.Table.from_pandas(frame))
    assert not source.is_array
    pd.testing.assert_frame_equal(next(source.parts()), frame)


@pytest.mark.parametrize("table", [{"a": [1.0, 2.0]}, [{"a": 1.0}, {"a": 2.0}]])
def test_names_the_way_from_dictionaries(table):
    with pytest.raises(ArgumentError, match=r"Pass pandas.DataFrame\(X\)"):
        source_of(table)


def test_rows_of_errors_are_of_the_whole_table(monkeypatch):
    monkeypatch.setattr(module, "PART", 5)
    values = np.arange(12.0)
    values[9] = np.nan
    column = types.SimpleNamespace(name="a", labels=None)
    with pytest.raises(ArgumentError, match=r"counted from 1: 10\."):
        fixed(source_of(pd.DataFrame({"a": values})), [column], names=True)


def test_array_in_a_file_stays_there(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 1000)
    np.save(tmp_path / "x.npy", np.zeros((500_000, 2)))
    tracemalloc.start()
    try:
        assert sum(map(len, source_of(tmp_path / "x.npy").parts())) == 500_000
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_labels_of_a_file_keep_their_text(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 5)
    frame = pd.DataFrame(
        {
            "code": ["01234", "10000"] * 6,
            "flag": ["True", "False"] * 5 + ["unknown"] * 2,
            "ok": ["true", "false"] * 6,
            "ward": [10, 9] * 6,
            "late": ["7"] * 8 + ["A"] * 4,
            "half": [0.5, 1.0] * 6,
        }
    )
    frame.to_csv(tmp_path / "x.csv", index=False)
    declared = {name: Category() for name in ("code", "ward", "late", "half")}
    rows = read(source_of(tmp_path / "x.csv"), declared, tmp_path / "scratch")
    assert rows.labels == (
        ("01234", "10000"),
        ("False", "True", "unknown"),
        (False, True),
        (9, 10),
        ("7", "A"),
        (0.5, 1.0),
    )
    assert [d for d in rows.dtypes if d not in ("str", "object")] == ["bool", "int64", "float64"]
    assert rows.values[:2, 3].tolist() == [1, 0]
    assert rows.values[-1].tolist() == [1, 2, 0, 0, 1, 1]


def test_codes_of_a_file_are_labels(tmp_path, monkeypatch):
    """Digits behind a 0 stay text, wherever they stand; a declared number is a number."""
    monkeypatch.setattr(module, "PART", 5)
    frame = pd.DataFrame(
        {
            "zip": ["94110"] * 6 + ["01234"] * 6,
            "visits": [0, 10] * 6,
            "share": ["0.5", "1.0"] * 6,
            "serial": ["007", "008"] * 6,
        }
    )
    frame.to_csv(tmp_path / "x.csv", index=False)
    rows = read(source_of(tmp_path / "x.csv"), {"serial": Integer()}, tmp_path / "scratch")
    assert rows.labels == (("01234", "94110"), None, None, None)
    assert rows.values[0].tolist() == [1, 0, 0.5, 7]


def test_scores_the_file_of_its_samples(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"code": rng.choice(["01234", "02345", "10000"], 60), "x": rng.normal(size=60)}
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    for given in (table, tmp_path / "table.csv"):
        estimator = DensityEstimator(
            {"code": Category()}, num_blocks=1, hidden_features=8, max_steps=3, progress=False
        )
        drawn = estimator.fit(given).sample(20)
        drawn.to_csv(tmp_path / "drawn.csv", index=False)
        assert set(drawn["code"]) <= set(table["code"])
        expected = estimator.score_samples(drawn)
        np.testing.assert_allclose(estimator.score_samples(tmp_path / "drawn.csv"), expected)


@pytest.mark.parametrize(
    ("cells", "option"),
    [(["1,000", "2,500", "1,200,000"], "thousands"), (["1,5", "2,500", "0,1"], "decimal")],
)
def test_commas_in_numbers(cells, option, tmp_path):
    source = source_of(pd.DataFrame({"a": cells * 4}))
    with pytest.raises(ArgumentError, match=rf"read_csv\(\.\.\., {option}=','\)"):
        read(source, {}, tmp_path / "scratch")


def test_categories_of_a_later_part(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 5)
    levels = pd.Categorical(list("mmmmmmlllhhh"), ["l", "m", "unused", "h"])
    rows = read(source_of(pd.DataFrame({"a": levels})), {}, tmp_path / "scratch")
    assert rows.labels == (("l", "m", "h"),)
    assert rows.values[:, 0].tolist() == [1] * 6 + [0] * 3 + [2] * 3


def test_labels_of_numbers(tmp_path):
    source = source_of(pd.DataFrame({"a": [3, 1, 3, 1, 7] * 3}))
    rows = read(source, {"a": Category()}, tmp_path / "scratch")
    assert rows.labels == ((1, 3, 7),)
    assert rows.values[:5, 0].tolist() == [1, 0, 1, 0, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expected a table"),
        ("a,1\n1,2\n", "both, 'a' among them"),
        ("a,b\n1,2,3\n", "Expected a table"),
        ("a,a\n1,2\n", "given twice: a"),
        (",b\n1,2\n", "Expected a name for every column"),
    ],
)
def test_refuses_text(text, words, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=words):
        read(source_of(path), {}, tmp_path / "scratch")


@pytest.mark.parametrize("name", ["x.parquet", "x.npy"])
def test_refuses_broken_files(name, tmp_path):
    (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(ArgumentError, match="Expected a"):
        list(source_of(tmp_path / name).parts())


def test_refuses_a_type_that_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 5)
    (tmp_path / "x.csv").write_text("a\n" + "1\n" * 7 + "one\n" * 5)
    with pytest.raises(ArgumentError, match="numbers in the column 'a'"):
        read(source_of(tmp_path / "x.csv"), {}, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("none.csv", ArgumentError, "there is none"),
        (np.zeros(3), ArgumentError, "Reshape"),
        (np.zeros((2, 2, 2)), ArgumentError, "shape"),
        (np.array([], dtype=object), ArgumentError, "shape"),
        (np.zeros((2, 2), complex), ArgumentError, "Complex"),
        ([[1.0, 2.0], [3.0]], ArgumentTypeError, "a table"),
    ],
)
def test_refuses_things(given, error, words):
    with pytest.raises(error, match=words):
        source_of(given)


def test_refuses_an_ending(tmp_path):
    (tmp_path / "x.xlsx").write_text("")
    with pytest.raises(ArgumentError, match=r"\.tsv, \.parquet or \.npy"):
        source_of(tmp_path / "x.xlsx")
    for name in ("x.gz", "x.npy.gz", "x.parquet.gz"):
        (tmp_path / name).write_text("")
        with pytest.raises(ArgumentError, match=r"\.csv\.gz"):
            source_of(tmp_path / name)


@pytest.mark.parametrize("name", ["x.csv.gz", "x.tsv", "x.TSV.gz"])
def test_other_files_of_text(name, tmp_path):
    frame = pd.DataFrame({"code": ["01", "02", "10"] * 20, "b": np.arange(60) / 8})
    how = "gzip" if name.endswith("gz") else None
    frame.to_csv(
        tmp_path / name, index=False, sep="\t" if "csv" not in name else ",", compression=how
    )
    rows = read(source_of(tmp_path / name), {}, tmp_path / "scratch")
    assert rows.names == ("code", "b")
    assert rows.labels == (("01", "02", "10"), None)
    np.testing.assert_array_equal(rows.values[:, 1], frame["b"])


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"", b"\x1f\x8b\x08\x00"])
def test_refuses_a_broken_archive(content, tmp_path):
    (tmp_path / "x.csv.gz").write_bytes(content)
    with pytest.raises(ArgumentError, match="Expected a table in"):
        read(source_of(tmp_path / "x.csv.gz"), {}, tmp_path / "scratch")


def test_refuses_a_cut_archive(tmp_path):
    whole = gzip.compress(b"a,b\n" + b"1.5,2\n" * 5000)
    (tmp_path / "x.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArgumentError, match="Expected a table in"):
        read(source_of(tmp_path / "x.csv.gz"), {}, tmp_path / "scratch")


def test_delimiter_of_two_rows(tmp_path):
    path = tmp_path / "table.csv"
    rows = "".join(f"{i};{i % 7}.5;{i % 3}.25\n" for i in range(60))
    path.write_text("a (m, n, o, p);b;c\n" + rows)
    source = source_of(path)
    (part,) = source.parts()
    assert list(part.columns) == ["a (m, n, o, p)", "b", "c"]
    assert len(part) == 60


def test_decimals_are_numbers(tmp_path):
    values = [Decimal(i) / 7 for i in range(60)]
    frame = pd.DataFrame({"a": values, "b": np.arange(60.0)})
    frame.to_parquet(tmp_path / "table.parquet")
    for table in (frame, tmp_path / "table.parquet"):
        (part,) = source_of(table).parts()
        assert part["a"].dtype == np.float64
        np.testing.assert_allclose(part["a"], np.array(values, dtype=float), rtol=1e-12)
    assert frame["a"].dtype == object

"""Tables whose density is infinite, and contexts whose rows are those of another table."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra train")

from pyro_iresnet.errors import ArgumentError
from pyro_iresnet.tables import Category, DensityEstimator
from pyro_iresnet.tables.model import check_order

SHORT = {"num_blocks": 1, "hidden_features": 8, "max_steps": 20, "progress": False}
RNG = np.random.default_rng(0)


def fitted(table, kinds=None):
    torch.manual_seed(0)
    return DensityEstimator(kinds, **SHORT).fit(table)


@pytest.mark.parametrize("rounded", [np.float64, np.float32])
def test_relation_behind_the_encoding_is_refused(rounded):
    w, h, other = np.exp(np.random.default_rng(0).normal(size=(3, 200)))
    table = pd.DataFrame({"width": w, "height": h, "other": other, "area": (w * h).astype(rounded)})
    with pytest.raises(ArgumentError, match=r"; width, height, area have one.*Drop one of them"):
        fitted(table)
    with pytest.raises(ArgumentError, match="; p, log p have one"):
        fitted(pd.DataFrame({"p": w, "log p": np.log(w)}))


def test_near_relation_behind_the_encoding_is_learned():
    rng = np.random.default_rng(0)
    w, h, noise = np.exp(rng.normal(size=(3, 200)) * [[1.0], [1.0], [0.01]])
    made = fitted(pd.DataFrame({"width": w, "height": h, "area": w * h * noise}))
    assert np.isfinite(made.held_out_scores_).all()


@pytest.mark.parametrize(
    ("points", "rows", "kinds", "warns"),
    [
        (10, 60, None, True),
        (20, 100, None, True),
        (21, 200, None, False),
        (10, 49, None, False),
        (20, 99, None, False),
        (10, 60, {"stars": Category()}, False),
    ],
)
def test_lattice_of_real_numbers_is_told(points, rows, kinds, warns):
    stars = 0.5 + 0.5 * (np.arange(rows) % points)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(pd.DataFrame({"stars": stars}), kinds)
    words = f"'stars' holds {points} numbers alone in {rows} rows"
    assert any(words in str(w.message) for w in caught) is warns
    assert len(caught) == warns


@pytest.mark.parametrize("shift", [1, -1])
def test_context_that_is_misaligned_is_refused(shift):
    table = pd.DataFrame(RNG.normal(size=(50, 2)), columns=["a", "b"])
    ours, theirs = (table.iloc[:-1], table.iloc[1:])[::shift]
    with pytest.raises(ArgumentError, match=r"context\.loc\[X\.index\]"):
        DensityEstimator(**SHORT).fit(ours[["a"]], context=theirs[["b"]])
    with pytest.raises(ArgumentError, match=r"context\.loc\[X\.index\]"):
        check_order(ours["a"], theirs["b"])


def test_shuffled_table_is_refused():
    table = pd.DataFrame(RNG.normal(size=(50, 2)), columns=["a", "b"])
    for rows in (table, table.iloc[:40]):
        shuffled = rows.sample(frac=1.0, random_state=0)
        with pytest.raises(ArgumentError, match=r"context\.loc\[X\.index\]"):
            check_order(shuffled[["a"]], rows[["b"]])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (range(6), range(6)),
        (range(6), list("abcdef")),
        (range(6), range(6, 12)),
        (list("fbdace"), list("fbdace")),
        ([0, 1, 2, 0, 1, 2], range(6)),
        ([4, 0, 9, 2, 7, 1], range(6)),
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 13, 14, 15]),
        ([(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "a"), (2, "b")], range(6)),
        (pd.date_range("2020", periods=6), pd.date_range("2020", periods=6, tz="UTC")),
        (pd.Categorical(list("abcdef")), pd.Categorical(list("uvwxyz"))),
        (range(6), range(5)),
        ([1.0, 2.0, 3.0, 4.0, 5.0, np.nan], [1.0, 2.0, 3.0, 4.0, 6.0, np.nan]),
    ],
)
def test_context_without_a_label_elsewhere_is_taken(ours, theirs):
    indices = [
        pd.MultiIndex.from_tuples(i) if isinstance(i, list) and isinstance(i[0], tuple) else i
        for i in (ours, theirs)
    ]
    check_order(*(pd.DataFrame({"a": np.arange(len(i))}, index=i) for i in indices))
    check_order(*(pd.DataFrame({"a": np.arange(len(i))}, index=i) for i in indices[::-1]))

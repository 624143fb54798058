"""Comparison of training steps: fair batches, floors, ratios, and the whole script."""

from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("normflows", reason="needs the extra bench")

from benchmarks.harness.measure import by_clocks
from benchmarks.harness.runs import Runs
from benchmarks.harness.steps import (
    COMPILED,
    UNIT,
    Timed,
    fastest,
    ratios,
    table_of,
    timed,
    training_step,
)
from benchmarks.models.trained import on_digits
from benchmarks.peers import contenders
from benchmarks.peers.contenders import Work
from benchmarks.run import training_step as script

from .reduced import cells, run

WORK = Work(9, (16,), blocks=2)


def test_batch_of_each_step():
    batches = [torch.randn(8, 9), torch.randn(8, 9)]
    left, seen = iter(batches), []
    contender = contenders.this_project(WORK)

    def log_prob(x):
        seen.append(x)
        return contender.log_prob(x)

    step = training_step(replace(contender, log_prob=log_prob), lambda: next(left))
    step()
    step()
    assert all(map(torch.equal, batches, seen))


def test_rate_zero_keeps_parameters():
    contender = contenders.this_project(WORK)
    before = [p.detach().clone() for p in contender.module.parameters()]
    step = training_step(contender, partial(torch.randn, 8, 9), rate=0.0)
    step()
    step()
    assert all(map(torch.equal, before, contender.module.parameters()))
    assert all(p.grad is not None for p in contender.module.parameters())


def test_products_and_floor():
    mlp = contenders.residual_mlp(WORK)
    step = training_step(mlp, partial(torch.randn, 8, 9))
    found = timed({"mlp": step, "mlp" + COMPILED: step}, rounds=1, counted=2)
    # Of two blocks: forward, gradients of weights and of inputs; the batch has no gradient.
    assert found["mlp"].products * UNIT == 8 * 2 * 9 * 16 * 6 - 8 * 9 * 16
    assert found["mlp" + COMPILED].products == found["mlp"].products
    assert 0 < found["mlp"].floor < found["mlp"].processor


def test_clocks_of_each():
    ticks = iter(range(1000))
    slow = iter(range(0, 100000, 7))
    clocks = (lambda: next(ticks), lambda: next(slow))
    found = by_clocks({"one": lambda: None}, clocks, rounds=3, inner=2)
    assert found == {"one": (500.0, 3500.0)}


def test_ratios_over_fastest_by_each_clock():
    quick, slow = Timed(2.0, 8.0, 0.5, 10, {}), Timed(4.0, 4.0, 1.0, 20, {"lu 2 x 2": 3})
    base = {"a": quick, "b": slow}
    assert fastest(base) == (2.0, 4.0)
    assert ratios(slow, *fastest(base)) == ["2.00", "1.00", "0.50"]
    assert "b: 3 lu 2 x 2." in table_of(base, base)


def test_saved_flow(tmp_path):
    """Train once, and load the same flow from the file of kept runs."""
    recipe = on_digits(blocks=1, steps=3)
    path = tmp_path / "runs"
    torch.manual_seed(0)
    saved = recipe.saved(Runs(path))
    assert recipe.saved(Runs(path)) == saved
    torch.manual_seed(0)
    flow = recipe.trained()
    x = recipe.batch(5)
    torch.testing.assert_close(recipe.loaded(saved).log_prob(x), flow.log_prob(x))
    other = on_digits(blocks=1, steps=4)
    assert other.saved(Runs(path)) != saved


@pytest.mark.slow
def test_script():
    result = run(script.main, "--fast")
    assert result.exit_code == 0, result.output
    rows = cells(result.output)
    goals = [row for row in rows if "<=" in row[-1]]
    # Two dimensions, two norms, packed and not; and the trained flow.
    assert len(goals) == 9
    assert all(float(cell) > 0 for row in goals for cell in row[2:5])

"""Timer of a guide's step: every checkout in a process of its own."""

from pathlib import Path

import pyro
import pytest
import torch
from pyro.poutine import condition, trace

pytest.importorskip("normflows", reason="needs the extra bench")

from benchmarks.run import guide_step
from benchmarks.targets.hierarchical import hierarchical
from pyro_iresnet import AutoIResNet

from .reduced import cells, run


@pytest.mark.parametrize(("varying", "dim"), [(3, 20), (8, 40)])
def test_coordinates_of_regression(varying, dim):
    guide = AutoIResNet(hierarchical(varying), init="plain", init_scale=0.1)
    guide()
    assert guide.latent_dim == dim


def test_particles_do_not_mix():
    """Compare the log-density of many particles with that of each alone."""
    model = hierarchical(3)
    shapes = {"slope": (4, 1, 8), "scale": (4, 1, 3), "apart": (4, 3, 3)}
    values = {name: torch.rand(shape) for name, shape in shapes.items()}

    def density(values, rows):
        with pyro.plate("particles", rows, dim=-2):
            return trace(condition(model, values)).get_trace().log_prob_sum()

    alone = sum(density({n: v[i : i + 1] for n, v in values.items()}, 1) for i in range(4))
    torch.testing.assert_close(density(values, 4), alone)


@pytest.mark.slow
def test_ratios_to_checkout():
    """Time this checkout against itself."""
    result = run(guide_step.main, "--fast", "--against", str(guide_step.HERE))
    assert result.exit_code == 0, result.output
    rows = cells(result.output)
    ratios = [row for row in rows if "over the other checkout" in row[0]]
    assert len(ratios) == 2
    goals = [row for row in rows if "<=" in row[-1]]
    # Where the guide is wider by default, there is a row for the narrow guide too.
    wide = sum(is_wide for _, is_wide, _ in guide_step.MODELS.values())
    assert len(goals) == len(guide_step.MODELS) + wide
    assert all(float(cell) > 0 for row in goals for cell in row[1:3])
    assert all(float(cell) > 0 for row in ratios for cell in row[1:])


@pytest.mark.slow
def test_refuses_other_package(tmp_path: Path):
    """A folder without a package is no checkout."""
    with pytest.raises(RuntimeError, match="ended early"), guide_step.Timer(tmp_path, 1):
        pass

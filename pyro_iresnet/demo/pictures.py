"""The pictures of the demo, in one style."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[Any]

INK, BLUE, GREY = "#1f2933", "#2f6fb3", "#9aa5b1"
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
}


def digits_beside_samples(data: Pixels, samples: Pixels, path: Path) -> None:
    """Draw held-out digits on the left and samples of the flow on the right, 8x8 of each."""
    with mpl.rc_context(STYLE):
        figure = _figure(7.0, 3.7)
        for axes, rows, title in zip(
            figure.subplots(1, 2),
            (data, samples),
            ("digits: data", "digits: i-ResNet samples"),
            strict=True,
        ):
            axes.imshow(_mosaic(torch.tensor(rows)), cmap="gray_r")
            axes.set_title(title)
            axes.set_axis_off()
        _save(figure, path)


def data_density_samples(
    data: Tensor, samples: Tensor, density: Callable[[Tensor], Tensor], path: Path
) -> None:
    """Draw points of the data, the density of the flow, and points of the flow."""
    line = torch.linspace(-4.6, 4.6, 160)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        height = density(grid).reshape(len(line), len(line)).T
    with mpl.rc_context(STYLE):
        figure = _figure(9.0, 3.2)
        left, middle, right = figure.subplots(1, 3, sharex=True, sharey=True)
        for axes, points, colour, title in (
            (left, data, GREY, "data"),
            (right, samples, BLUE, "i-ResNet samples"),
        ):
            axes.plot(*points.T.numpy(), ".", color=colour, markersize=1.5)
            axes.set_title(title)
        edges = (float(line[0]), float(line[-1]))
        middle.imshow(height.numpy(), origin="lower", extent=(*edges, *edges), cmap="Blues", vmin=0)
        middle.set_title("i-ResNet density")
        left.set_ylabel("$x_2$")
        for axes in (left, middle, right):
            axes.set(xlabel="$x_1$", xlim=edges, ylim=edges, aspect="equal")
        _save(figure, path)


def tau_against_theta(truth: Tensor, draws: dict[str, Tensor], path: Path) -> None:
    """Draw each guide over exact posterior draws, for the pair that mean-field guides get wrong."""
    with mpl.rc_context(STYLE):
        figure = _figure(9.0, 3.2)
        panels: list[Axes] = list(figure.subplots(1, len(draws), sharex=True, sharey=True))
        for axes, (name, pairs) in zip(panels, draws.items(), strict=True):
            axes.plot(*truth.T.numpy(), ".", color=GREY, markersize=1.5, label="exact")
            drawn = pairs[: len(truth)].T.numpy()
            axes.plot(*drawn, ".", color=BLUE, markersize=1.5, label="guide")
            axes.set(title=name, xlabel=r"$\theta_1$", xlim=(-20, 45))
            axes.set(ylim=(0.02, 60), yscale="log")
        panels[0].set_ylabel(r"$\tau$")
        panels[0].legend(frameon=False, markerscale=6, loc="lower right")
        _save(figure, path)


def _mosaic(rows: Tensor) -> Tensor:
    tiles = torch.nn.functional.pad(rows[:64].reshape(8, 8, 8, 8), (1, 1, 1, 1))
    return tiles.permute(0, 2, 1, 3).reshape(80, 80)


def _figure(width: float, height: float) -> Figure:
    # Without pyplot, which would keep every figure and ask for a display.
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", pad_inches=0.08)

"""Picture of the comparison: a row for each data set, a column for each flow."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pyro_iresnet.demo.pictures import STYLE

from .toy_training import seen_as

INCH = 0.86
COLOURS = 40


def pictured(rows: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """Draw densities.

    Arguments:
        rows: grids of ``drawn``, by the name of the data set, then by the name of the flow. An
            empty grid leaves its place empty.
        path: the file of the PNG.
    """
    columns = list(next(iter(rows.values())))
    with mpl.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        figure = Figure((INCH * len(columns) + 0.3, INCH * len(rows) + 0.25))
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for row, (data, grids) in enumerate(rows.items()):
            across = axes[row]
            across[0].set_ylabel(data, fontsize=7.5)
            for place, (name, grid) in zip(across, grids.items(), strict=True):
                place.set(xticks=[], yticks=[])
                place.spines[:].set_visible(False)
                if grid:
                    place.imshow(seen_as(grid), origin="lower", cmap="magma", vmin=0, vmax=1)
                if row == 0:
                    place.set_title(name, fontsize=7.5)
        figure.subplots_adjust(0.025, 0.005, 0.998, 0.965, wspace=0.03, hspace=0.03)
        figure.savefig(path, dpi=140)
    # A palette makes the file a third as large.
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)

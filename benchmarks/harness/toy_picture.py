"""Picture of the comparison: a row for each flow, a column for each data set."""

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
# Inches for the names.
MARGIN = 0.25


def pictured(rows: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """Draw densities.

    Arguments:
        rows: grids of ``drawn``, by the name of the flow, then by the name of the data set.
        path: the file of the PNG.
    """
    columns = list(next(iter(rows.values())))
    with mpl.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        size = INCH * len(columns) + MARGIN, INCH * len(rows) + MARGIN
        figure = Figure(size)
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for row, (flow, grids) in enumerate(rows.items()):
            across = axes[row]
            across[0].set_ylabel(flow, fontsize=7.5)
            for place, (name, grid) in zip(across, grids.items(), strict=True):
                place.set(xticks=[], yticks=[])
                place.spines[:].set_visible(False)
                place.imshow(seen_as(grid), origin="lower", cmap="magma", vmin=0, vmax=1)
                if row == 0:
                    place.set_title(name, fontsize=7.5)
        left, top = MARGIN / size[0], 1 - MARGIN / size[1]
        figure.subplots_adjust(left, 0.01, 0.998, top, wspace=0.03, hspace=0.03)
        figure.savefig(path, dpi=140)
    # A palette makes the file a third as large.
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)

"""Figures as PNG: grids of images, and loss curves."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_prep.files import replacing
from vae.metrics import EpochLine, MetricsLine, StepLine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID_COLUMNS = 8
PANEL_COLUMNS = 3
GAP_PX = 2

# Okabe & Ito's palette, which colour-blind readers can tell apart; line styles repeat the difference.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")

Points = list[tuple[float, float]]


def write_grid(path: Path, images: npt.NDArray[np.uint8], columns: int = GRID_COLUMNS) -> None:
    """Write images [n, H, W] as one PNG, pixel for pixel, row by row, so many to a row."""
    count, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    # each with a white gap at its right and its lower edge; the last ones fall away
    cells = np.pad(images, ((0, rows * columns - count), (0, GAP_PX), (0, GAP_PX)), constant_values=255)
    grid = cells.reshape(rows, columns, height + GAP_PX, width + GAP_PX).swapaxes(1, 2)
    canvas = grid.reshape(rows * (height + GAP_PX), -1)[:-GAP_PX, :-GAP_PX]
    with replacing(path) as part:
        Image.fromarray(canvas).save(part, format="PNG", optimize=True)


def write_loss_curves(path: Path, metrics: Mapping[str, Sequence[MetricsLine]]) -> bool:
    """Plot the losses of runs, by name, over epochs; False, and no file, where nothing was logged yet."""
    figure = draw_loss_curves(metrics)
    if figure is None:
        return False
    with replacing(path) as part:
        figure.savefig(part, format="png")
    return True


def draw_loss_curves(metrics: Mapping[str, Sequence[MetricsLine]]) -> "Figure | None":
    """The figure of `write_loss_curves`; None where nothing was logged yet."""
    curves = {name: _curves(lines) for name, lines in metrics.items()}
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if not curves:
        return None
    # a figure of its own, not pyplot's: no global state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (train, validation)) in enumerate(curves.items()):
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
        axes.plot(*np.reshape(train, (-1, 2)).T, color=colour, alpha=0.35, linewidth=1)
        (line,) = axes.plot(*np.reshape(validation, (-1, 2)).T, color=colour, label=f"{name}, validation")
        line.set(linestyle=style, marker="o", markersize=4)
        if not validation:
            axes.plot([], [], color=colour, alpha=0.35, label=f"{name}, training")

    # frame and words
    axes.set(xlabel="epoch", ylabel="loss (nats/image)")
    axes.set_title("Loss per image: faint lines training batches, marked lines validation", fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    points = chain.from_iterable(train + validation for train, validation in curves.values())
    losses = [loss for _, loss in points]
    # limits that show the curves and not the first steps, which lie far above them
    low, high = min(losses), float(np.percentile(losses, 98))
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    return figure


class Interval(NamedTuple):
    """A number of a run, and the ends of what is known of its uncertainty."""

    name: str
    value: float
    low: float
    high: float


class Panel(NamedTuple):
    """One score of several runs; `band`, if any, is what real images score."""

    title: str
    intervals: Sequence[Interval]
    band: tuple[float, float] | None = None


def write_intervals(path: Path, panels: Sequence[Panel]) -> None:
    """Plot each panel's numbers with their intervals, a row for each name, real images as a grey band."""
    from matplotlib.figure import Figure

    columns = min(PANEL_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(entry.name for panel in panels for entry in panel.intervals))
    height_in = rows * (0.9 + 0.25 * len(names))
    figure = Figure(figsize=(8, height_in), dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for number, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        for entry in panel.intervals:
            place = names.index(entry.name)
            ends = [[entry.value - entry.low], [entry.high - entry.value]]
            colour = COLOURS[place % len(COLOURS)]
            axes.errorbar(entry.value, place, xerr=ends, fmt="o", color=colour, capsize=3, markersize=4)
        if panel.band:
            axes.axvspan(*panel.band, color="#999999", alpha=0.4, linewidth=0)
        axes.set_title(panel.title, fontsize=9)
        axes.set_yticks(range(len(names)), names if number % columns == 0 else [""] * len(names), fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, format="png")


def _curves(lines: Sequence[MetricsLine]) -> tuple[Points, Points]:
    """(epoch, loss) of the logged training steps, and of the validation passes."""
    epochs = [line for line in lines if isinstance(line, EpochLine)]
    train: Points = [(line.epoch, line.loss) for line in lines if isinstance(line, StepLine)]
    train = train or [(line.epoch, line.train_loss) for line in epochs]
    return train, [(line.epoch, line.val_loss) for line in epochs if line.val_loss is not None]

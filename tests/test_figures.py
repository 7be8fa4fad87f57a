"""Figures: grids pixel for pixel, loss curves with the losses that were logged."""

from pathlib import Path

import numpy as np
from PIL import Image

from vae.figures import (
    COLOURS,
    Interval,
    Panel,
    draw_loss_curves,
    write_grid,
    write_intervals,
    write_loss_curves,
)
from vae.metrics import EpochLine, StartLine, StepLine


def test_a_grid_holds_every_image_pixel_for_pixel(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (11, 6, 5), dtype=np.uint8)
    write_grid(tmp_path / "figures" / "grid.png", images)
    grid = np.asarray(Image.open(tmp_path / "figures" / "grid.png"))
    assert grid.shape == (2 * 6 + 2, 8 * 5 + 7 * 2)
    for number, image in enumerate(images):
        top, left = number // 8 * 8, number % 8 * 7
        assert np.array_equal(grid[top : top + 6, left : left + 5], image)
    assert (grid[8:, 3 * 7 :] == 255).all()  # the empty places are white
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["grid.png"]


def test_one_image_makes_a_grid_of_its_own_size(tmp_path: Path) -> None:
    write_grid(tmp_path / "grid.png", np.zeros((1, 4, 4), np.uint8))
    assert Image.open(tmp_path / "grid.png").size == (4, 4)


def step(epoch: float, loss: float) -> StepLine:
    return StepLine(step=1, epoch=epoch, loss=loss, bce=loss, kl=0.0, lr=1e-3, images_per_s=1.0)


def check(epoch: int, train_loss: float, val_loss: float | None = None) -> EpochLine:
    return EpochLine(step=1, epoch=epoch, train_loss=train_loss, train_bce=0, train_kl=0, val_loss=val_loss)


STEPS = [step(e / 4, 100 - e) for e in range(1, 9)]
RUNS = {
    "both": [
        StartLine(step=0, total_steps=8, steps_per_epoch=4),
        *STEPS,
        check(1, 98, 99.5),
        check(2, 95),
        check(3, 94, 97.5),
    ],
    "steps": STEPS,
    "epochs": [check(1, 90), check(2, 80)],
    "empty": [],
}


def test_a_curve_has_the_losses_of_its_run_in_a_colour_and_style_of_its_own() -> None:
    figure = draw_loss_curves(RUNS)
    assert figure is not None
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata())]
    drawn = [(line.get_color(), np.column_stack(line.get_data()).tolist()) for line in lines]
    steps = [[line.epoch, line.loss] for line in STEPS]
    assert drawn == [
        (COLOURS[0], steps),
        (COLOURS[0], [[1, 99.5], [3, 97.5]]),
        (COLOURS[1], steps),
        (COLOURS[2], [[1, 90], [2, 80]]),
    ]
    legend = axes.get_legend()
    assert legend is not None
    named = {text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert [name for name, line in named.items() if line.get_marker() == "o"] == [
        f"{run}, validation" for run in ("both", "steps", "epochs")
    ]
    assert {"steps, training", "epochs, training"} < named.keys()
    assert named["both, validation"].get_linestyle() != named["steps, validation"].get_linestyle()


def test_the_frame_shows_the_curves_and_names_what_they_are() -> None:
    """The first step lies far above the others, and above the frame."""
    figure = draw_loss_curves(
        {"a": [step(0.01, 5000), *(step(e / 100, 60 - e / 100) for e in range(2, 101))]}
    )
    assert figure is not None
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert 58 < low < 59
    assert 60 < high < 61
    assert axes.get_xlim()[0] < 0.01
    assert axes.get_xlim()[1] > 1
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss (nats/image)")


def test_loss_curves_of_several_runs_make_one_file_in_their_colours(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "loss.png"
    assert write_loss_curves(path, RUNS)
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape == (540, 960, 3)
    for colour in COLOURS[:2]:  # of the marked line, and of the legend
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (picture == rgb).all(-1).any(), colour
    assert [file.name for file in path.parent.iterdir()] == ["loss.png"]


def test_no_losses_make_no_figure(tmp_path: Path) -> None:
    start = StartLine(step=0, total_steps=8, steps_per_epoch=4)
    assert not write_loss_curves(tmp_path / "loss.png", {"a": [start], "b": []})
    assert not (tmp_path / "loss.png").exists()


def test_intervals_are_drawn_with_a_band_for_real_images(tmp_path: Path) -> None:
    """A wide band is more grey than none, and more runs make a higher picture."""
    runs = [Interval("linear-s0", 4.0, 3.5, 4.5), Interval("direct-s0", 2.0, 1.9, 2.1)]
    sizes, greys = [], []
    for number, (chosen, band) in enumerate(((runs, (1.0, 3.0)), (runs, None), (runs[:1], None))):
        path = tmp_path / f"{number}.png"
        write_intervals(path, [Panel("FID", chosen, band)] * 4)
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        sizes.append(pixels.shape)
        # of the band's own shade, with or without a grid line in it
        greys.append(int((np.abs(pixels - 214).max(axis=2) < 3).sum()))
    assert sizes[0] == sizes[1]
    assert sizes[0][0] > sizes[2][0]
    assert greys[0] > 20 * max(greys[1], 1)

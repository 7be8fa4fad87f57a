"""Figures: grids pixel for pixel, loss curves where there is something to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vae.figures import write_grid, write_loss_curves


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


def line(kind: str, epoch: float, **values: float) -> dict:
    return {"kind": kind, "epoch": epoch, "step": 1, **values}


def test_loss_curves_of_several_runs_make_one_figure(tmp_path: Path) -> None:
    steps = [line("step", e / 4, loss=100 - e) for e in range(1, 9)]
    checks = [line("epoch", e, train_loss=99 - e, val_loss=100 - e) for e in (1, 2)]
    lines = [{"kind": "start", "step": 0}, *steps, *checks]
    path = tmp_path / "figures" / "loss.png"
    assert write_loss_curves(path, {"a": lines, "b": steps, "empty": []})
    picture = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(picture, axis=0)) > 50  # axes, letters and coloured lines


def test_no_losses_make_no_figure(tmp_path: Path) -> None:
    assert not write_loss_curves(tmp_path / "loss.png", {"a": [{"kind": "start", "step": 0}], "b": []})
    assert not (tmp_path / "loss.png").exists()

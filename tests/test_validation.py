"""The losses of a whole split, without noise and without a trace."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY

from vae.config import RunConfig
from vae.losses import bce_per_image, kl_per_image
from vae.training.accelerator import start_accelerator
from vae.training.data_loader import load_split, to_unit
from vae.training.trainer import validate
from vae.training.training_state import TrainingState, build_training_state


def make_state(tmp_path: Path) -> TrainingState:
    config = RunConfig(**TINY)  # type: ignore[arg-type]
    return build_training_state(config, start_accelerator(config, tmp_path), total_steps=10)


def test_validation_sees_every_image_once(tmp_path: Path, shards: Path) -> None:
    """13 images in batches of 8: a ragged last batch, and the mean of the latents."""
    state, split = make_state(tmp_path), load_split(shards, "test")
    losses = validate(state, split)
    images = to_unit(split.take(np.arange(13)))
    output = state.model(images)
    bce = bce_per_image(output.logits, images).mean().item()
    kl = kl_per_image(output.mean, output.log_variance).mean().item()
    expected = (bce + 1e-4 * kl, bce, kl)
    assert (losses["val_loss"], losses["val_bce"], losses["val_kl"]) == pytest.approx(expected, rel=1e-5)


def test_validation_changes_nothing(tmp_path: Path, shards: Path) -> None:
    state = make_state(tmp_path)
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    validate(state, load_split(shards, "val"))
    assert state.model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in state.model.state_dict().items())

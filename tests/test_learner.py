"""One optimiser step, and the losses of a whole split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY

from vae.config import RunConfig
from vae.losses import bce_per_image, kl_per_image
from vae.training.accelerator import start_accelerator
from vae.training.data_loader import BatchPlan, load_split, to_unit
from vae.training.learner import Learner


def make_learner(tmp_path: Path, **settings: object) -> Learner:
    config = RunConfig(**{**TINY, **settings})  # type: ignore[arg-type]
    return Learner(config, start_accelerator(config, tmp_path), total_steps=10)


def test_validation_sees_every_image_once(tmp_path: Path, shards: Path) -> None:
    """13 images in batches of 8: a ragged last batch, and the mean of the latents."""
    learner, split = make_learner(tmp_path), load_split(shards, "test")
    told = learner.validate(split)
    images = to_unit(split.take(np.arange(13)))
    output = learner.model(images)
    bce = bce_per_image(output.logits, images).mean().item()
    kl = kl_per_image(output.mean, output.log_variance).mean().item()
    assert told == pytest.approx({"val_loss": bce + 1e-4 * kl, "val_bce": bce, "val_kl": kl}, rel=1e-5)


def test_validation_changes_nothing(tmp_path: Path, shards: Path) -> None:
    learner = make_learner(tmp_path)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.validate(load_split(shards, "val"))
    assert learner.model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.model.state_dict().items())


def test_same_step_on_the_same_batch_falls(tmp_path: Path, shards: Path) -> None:
    learner, split = make_learner(tmp_path, lr=1e-2), load_split(shards, "train")
    plan, batch = BatchPlan(len(split), 8, 0), split.take(np.arange(8))
    losses = [learner.step(batch, 0, plan, wants_norm=False)[0][0].item() for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_gradient_norm_is_only_computed_where_it_is_wanted(tmp_path: Path, shards: Path) -> None:
    learner, split = make_learner(tmp_path), load_split(shards, "train")
    plan, batch = BatchPlan(len(split), 8, 0), split.take(np.arange(8))
    assert learner.step(batch, 0, plan, wants_norm=False)[1] is None
    norm = learner.step(batch, 1, plan, wants_norm=True)[1]
    assert norm is not None
    assert norm > 0


def test_warm_up_rises_linearly_and_cosine_falls_to_zero(tmp_path: Path) -> None:
    learner = make_learner(tmp_path, schedule="cosine", warmup_steps=2, lr=1.0)
    assert [learner.lr(0), learner.lr(1), learner.lr(2)] == [0.5, 1.0, 1.0]
    assert learner.lr(6) == pytest.approx(0.5)
    assert learner.lr(10) == pytest.approx(0.0)


def test_bf16_autocast_runs_and_keeps_fp32_weights_and_losses(tmp_path: Path, shards: Path) -> None:
    learner, split = make_learner(tmp_path, precision="bf16"), load_split(shards, "train")
    plan, batch = BatchPlan(len(split), 8, 0), split.take(np.arange(8))
    losses, _ = learner.step(batch, 0, plan, wants_norm=False)
    exact = make_learner(tmp_path, precision="fp32").step(batch, 0, plan, wants_norm=False)[0]
    assert all(p.dtype == torch.float32 for p in learner.model.parameters())
    assert losses.tolist() == pytest.approx(exact.tolist(), rel=1e-2)
    assert losses.tolist() != exact.tolist()


def test_compiled_model_takes_the_same_step(tmp_path: Path, shards: Path) -> None:
    split = load_split(shards, "train")
    plan, batch = BatchPlan(len(split), 8, 0), split.take(np.arange(8))
    plain, compiled = make_learner(tmp_path), make_learner(tmp_path, compile=True)
    for step in range(2):
        expected = plain.step(batch, step, plan, wants_norm=False)[0]
        assert compiled.step(batch, step, plan, wants_norm=False)[0].tolist() == pytest.approx(
            expected.tolist(), rel=1e-4
        )
    assert plain.model.state_dict().keys() == compiled.model.state_dict().keys()

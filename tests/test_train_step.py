"""One optimiser step: what it computes, clips and changes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY

from vae.config import RunConfig
from vae.training.accelerator import start_accelerator
from vae.training.data_loader import BatchPlan, load_split
from vae.training.trainer import train_step
from vae.training.training_state import TrainingState, build_training_state


def make_state(tmp_path: Path, **settings: object) -> TrainingState:
    config = RunConfig(**{**TINY, **settings})  # type: ignore[arg-type]
    return build_training_state(config, start_accelerator(config, tmp_path), total_steps=10)


def test_same_step_on_the_same_batch_falls(tmp_path: Path, shards: Path) -> None:
    state, split = make_state(tmp_path, lr=1e-2), load_split(shards, "train")
    plan, batch = BatchPlan(len(split), 8, 0), split.take(np.arange(8))
    losses = [train_step(state, batch, plan, 0, wants_norm=False)[0][0].item() for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_gradient_norm_is_only_computed_where_it_is_wanted(tmp_path: Path, shards: Path) -> None:
    state, split = make_state(tmp_path), load_split(shards, "train")
    plan, batch = BatchPlan(len(split), 8, 0), split.take(np.arange(8))
    assert train_step(state, batch, plan, 0, wants_norm=False)[1] is None
    norm = train_step(state, batch, plan, 1, wants_norm=True)[1]
    assert norm is not None
    assert norm > 0


def test_clipping_bounds_the_gradient_that_the_optimiser_sees(tmp_path: Path, shards: Path) -> None:
    """The limit is per image, the loss a sum over 8 of them; the norm that is returned is the one before."""
    split = load_split(shards, "train")
    plan, batch = BatchPlan(len(split), 8, 0), split.take(np.arange(8))
    free, clipped = make_state(tmp_path), make_state(tmp_path, clip_norm=0.5)
    norms = [seen_norm(state, plan, batch) for state in (free, clipped)]
    assert norms[0][1] == pytest.approx(norms[0][0], rel=1e-5)
    assert norms[1] == (pytest.approx(norms[0][0], rel=1e-5), pytest.approx(8 * 0.5, rel=1e-5))
    assert norms[0][0] > 2 * 8 * 0.5


def seen_norm(state: TrainingState, plan: BatchPlan, batch: torch.Tensor) -> tuple[float, float]:
    """Norm that a step returns, and that of the gradient with which its optimiser is called."""
    seen = []

    def look(*_: object) -> None:
        seen.append(
            torch.stack([p.grad.norm() for p in state.model.parameters() if p.grad is not None]).norm()
        )

    state.optimizer.optimizer.register_step_pre_hook(look)  # type: ignore[attr-defined]  # accelerate's wrapper
    _, norm = train_step(state, batch, plan, 0, wants_norm=True)
    assert norm is not None
    return norm.item(), seen[0].item()


def test_warm_up_rises_linearly_and_cosine_falls_to_zero(tmp_path: Path) -> None:
    state = make_state(tmp_path, schedule="cosine", warmup_steps=2, lr=1.0)
    assert [state.lr(0), state.lr(1), state.lr(2)] == [0.5, 1.0, 1.0]
    assert state.lr(6) == pytest.approx(0.5)
    assert state.lr(10) == pytest.approx(0.0)


def test_bf16_autocast_runs_and_keeps_fp32_weights_and_losses(tmp_path: Path, shards: Path) -> None:
    state, split = make_state(tmp_path, precision="bf16"), load_split(shards, "train")
    plan, batch = BatchPlan(len(split), 8, 0), split.take(np.arange(8))
    losses, _ = train_step(state, batch, plan, 0, wants_norm=False)
    exact = train_step(make_state(tmp_path, precision="fp32"), batch, plan, 0, wants_norm=False)[0]
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
    assert losses.tolist() == pytest.approx(exact.tolist(), rel=1e-2)
    assert losses.tolist() != exact.tolist()


def test_compiled_model_takes_the_same_step(tmp_path: Path, shards: Path) -> None:
    split = load_split(shards, "train")
    plan, batch = BatchPlan(len(split), 8, 0), split.take(np.arange(8))
    plain, compiled = make_state(tmp_path), make_state(tmp_path, compile=True)
    assert type(compiled.optimizer.optimizer) is torch.optim.Adam  # type: ignore[attr-defined]
    for step in range(2):
        expected = train_step(plain, batch, plan, step, wants_norm=False)[0]
        assert train_step(compiled, batch, plan, step, wants_norm=False)[0].tolist() == pytest.approx(
            expected.tolist(), rel=1e-4
        )
    assert plain.model.state_dict().keys() == compiled.model.state_dict().keys()

"""slurm/follow.py: what a waiting user is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from slurm.diagnose.follow import LocalFollower
from slurm.node.task import EvaluateTask, TrainTask
from slurm.plan import JobRequest
from vae.study import METRICS_FILE


def write(run_dir: Path, *lines: dict[str, object]) -> None:
    run_dir.mkdir(exist_ok=True)
    (run_dir / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_local_training_tells_loss_speed_and_time_left_once_an_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "linear-s0"
    request = JobRequest("train", "train", tmp_path, {0: TrainTask(str(run_dir))})
    start = {"kind": "start", "step": 0, "total_steps": 3000, "steps_per_epoch": 100, "time": 0}
    first = {"kind": "step", "step": 100, "loss": 31234.5, "images_per_s": 64.2, "time": 100}
    second = {"kind": "step", "step": 200, "loss": 29000.25, "images_per_s": 65.0, "time": 200}
    follow = LocalFollower()
    with caplog.at_level(logging.INFO, "slurm.follow"):
        follow(request, 0)
        write(run_dir, start, first)
        follow(request, 0)
        write(run_dir, start, first, second)
        follow(request, 0)
        follow(request, 0)
        follow(JobRequest("evaluate", "evaluate", tmp_path, {0: EvaluateTask(str(run_dir))}), 0)
    assert caplog.messages == [
        "train linear-s0 begins",
        "train linear-s0: epoch 1, step 100 of 3,000, loss 31,234.5 nats/image, 64 images/s",
        "train linear-s0: epoch 2, step 200 of 3,000, loss 29,000.2 nats/image, 65 images/s, 47 min left",
        "evaluate linear-s0 begins",
    ]

"""What a run tells: lines a person can follow, and files that read like an unbroken run's."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import REPOSITORY, child_environment, make_run, write_lines
from warm import run_script, start_process

from data_prep.errors import RunError
from vae.config import RunConfig
from vae.metrics import EpochLine, SaveLine, StartLine, StepLine, read_metrics
from vae.training.accelerator import start_accelerator
from vae.training.metrics_log import MetricsLog, own_folders
from vae.training.trainer import train


def make_metrics_log(run_dir: Path, **settings: object) -> MetricsLog:
    config = RunConfig(batch_size=4, trackers=(), **settings)  # type: ignore[arg-type]
    run_dir.mkdir(exist_ok=True)
    return MetricsLog(run_dir, config, start_accelerator(config, run_dir), steps_per_epoch=2, total_steps=6)


def test_losses_are_per_image_and_add_up_with_beta(tmp_path: Path) -> None:
    metrics_log = make_metrics_log(tmp_path, beta=0.5)
    metrics_log.start(0, [0.0, 0.0], restarts=0)
    with metrics_log:
        metrics_log.add(torch.tensor([40.0, 8.0], dtype=torch.float64))
        metrics_log.log_step(1, lr=0.1, grad_norm=torch.tensor(12.0))
        metrics_log.add(torch.tensor([20.0, 4.0], dtype=torch.float64))
        metrics_log.log_epoch(2, {"val_loss": 3.0, "val_bce": 2.0, "val_kl": 1.0})
    _, step, epoch = read_metrics(tmp_path)
    assert isinstance(step, StepLine)
    assert isinstance(epoch, EpochLine)
    assert (step.bce, step.kl, step.loss, step.grad_norm) == (10, 2, 11, 3)
    assert (epoch.train_bce, epoch.train_kl, epoch.train_loss, epoch.val_loss) == (7.5, 1.5, 8.25, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_first_of_several_bad_losses_is_named(tmp_path: Path, bad: float) -> None:
    metrics_log = make_metrics_log(tmp_path)
    for value in (1.0, bad, bad):
        metrics_log.add(torch.tensor([value, 0.0], dtype=torch.float64))
    with pytest.raises(RunError, match="not finite at step 8; there is no checkpoint before it"):
        metrics_log.flush_losses(9)


def test_lines_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    saves = [SaveLine(step=step, time=100.0 + step, seconds=0.1) for step in (1, 2, 3, 4)]
    write_lines(tmp_path, *saves[:1], *saves[2:], saves[1])  # that of step 2 was whole only then
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kin')
    redone = make_metrics_log(tmp_path).start(2, [0.0, 0.0], restarts=1)
    assert redone == (4, 1.0)
    *kept, start = read_metrics(tmp_path)
    assert kept == saves[:2]
    assert isinstance(start, StartLine)
    assert (start.step, start.restarts) == (2, 1)


def test_infinite_gradient_norm_of_a_skipped_fp16_step_is_left_out(tmp_path: Path) -> None:
    metrics_log = make_metrics_log(tmp_path)
    metrics_log.start(0, [0.0, 0.0], restarts=0)
    metrics_log.add(torch.ones(2, dtype=torch.float64))
    metrics_log.log_step(1, lr=0.1, grad_norm=torch.tensor(float("inf")))
    assert b"grad_norm" not in (tmp_path / "metrics.jsonl").read_bytes()  # JSON knows no infinity


def test_tensorboard_gets_every_logged_value(tmp_path: Path, shards: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = make_run(tmp_path / "linear-s0", shards, trackers=("tensorboard",), max_steps=3)
    train(run_dir)
    events = EventAccumulator(str(run_dir / "tensorboard" / "linear-s0"))
    events.Reload()
    written = [event.value for event in events.Scalars("loss")]
    losses = [line.loss for line in read_metrics(run_dir) if isinstance(line, StepLine)]
    assert written == pytest.approx(losses)


def test_terminal_gets_a_bar_and_a_log_file_gets_plain_lines(tmp_path: Path, shards: Path) -> None:
    run_command(make_run(tmp_path / "plain", shards, max_steps=4), tmp_path / "log")
    plain = (tmp_path / "log").read_text()
    assert "plain: step 4 of 4: loss " in plain
    assert "nats/image" in plain
    assert "\x1b" not in plain
    main, side = pty.openpty()
    run_command(make_run(tmp_path / "bar", shards, max_steps=4), Path(os.ttyname(side)))
    os.close(side)
    shown = os.read(main, 1 << 16).decode()
    os.close(main)
    assert "4/4" in shown
    assert "\x1b" in shown


def run_command(run_dir: Path, stderr: Path) -> None:
    variables = {"TERM": "xterm", "COLUMNS": "100"}
    process = start_process(run_script, "train", str(run_dir), variables=variables, stderr=stderr)
    process.join(120)
    assert process.exitcode == 0


# A library that does with its folder as wandb does.
LIKE_WANDB = """
import os
from pathlib import Path
from unittest.mock import Mock
config = Mock()
def init(project, dir=None, **_):
    (Path(dir or os.environ.get("WANDB_DIR", ".")) / "wandb").mkdir()
    return Mock()
"""


def test_trackers_write_into_the_run_and_not_into_the_working_directory(tmp_path: Path, shards: Path) -> None:
    """By accelerate's own tracker of wandb, which itself is not installed."""
    library, here = tmp_path / "library", tmp_path / "here"
    for folder in (here, library / "wandb-1.dist-info"):
        folder.mkdir(parents=True)
    (library / "wandb-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: wandb\nVersion: 1\n"
    )
    (library / "wandb.py").write_text(LIKE_WANDB)
    run_dir = make_run(tmp_path / "linear-s0", shards, max_steps=1, trackers=("wandb",))
    environment = child_environment()
    environment["PYTHONPATH"] += f":{library}"
    environment.pop("WANDB_DIR", None)
    code = f"from pathlib import Path; from vae.training.trainer import train; train(Path({str(run_dir)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, check=True)
    assert list(here.iterdir()) == []
    assert (run_dir / "wandb").is_dir()


def test_a_folder_that_the_user_has_chosen_for_a_tracker_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "COMET_OFFLINE_DIRECTORY", "WANDB_DIR"):
        monkeypatch.setenv(name, "/scratch/mine")
    folders = own_folders(tmp_path)
    assert folders["wandb"] == {}
    assert os.environ["MLFLOW_TRACKING_URI"] == "/scratch/mine"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("WANDB_DIR")
    assert own_folders(tmp_path)["wandb"] == {"dir": str(tmp_path)}
    assert os.environ["MLFLOW_TRACKING_URI"] == (tmp_path / "mlruns").as_uri()


def test_git_ignores_what_wandb_leaves() -> None:
    ignored = subprocess.run(["git", "check-ignore", "-q", "wandb/run-1/x"], cwd=REPOSITORY)
    assert ignored.returncode == 0 or not (REPOSITORY / ".git").exists()

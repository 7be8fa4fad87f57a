"""A run ends the same whatever interrupts it, and says clearly when it cannot go on."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from msgspec.structs import asdict, replace
from safetensors.torch import load_file
from tiny import REPOSITORY, blob, child_environment, make_run, make_shards
from warm import start_process

from data_prep.errors import DataError, RunError, SettingsError
from vae.config import RunConfig
from vae.metrics import EpochLine, StartLine, StepLine, read_metrics
from vae.run_dir import checkpoint_dirs, read_done
from vae.study import is_trained, read_run
from vae.training import checkpoint, trainer
from vae.training.trainer import train

VARIANTS = ("linear", "direct", "spatial")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    done = read_done(run_dir)
    assert done is not None
    return load_file(run_dir / "checkpoints" / done.checkpoint / "model.safetensors")


def logged(run_dir: Path) -> list[StepLine | EpochLine]:
    """The losses in metrics.jsonl, without clocks and without the marks of attempts and saves."""
    clocks = {StepLine: {"time": 0.0, "images_per_s": 0.0}, EpochLine: {"time": 0.0, "val_seconds": 0.0}}
    lines = [line for line in read_metrics(run_dir) if isinstance(line, (StepLine, EpochLine))]
    return [replace(line, **clocks[type(line)]) for line in lines]


def steps_of(run_dir: Path) -> list[StepLine]:
    return [line for line in read_metrics(run_dir) if isinstance(line, StepLine)]


def assert_same_result(run_dir: Path, other: Path) -> None:
    left, right = final_weights(run_dir), final_weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert logged(run_dir) == logged(other)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict[str, Path]:
    """Each variant trained in one go: 3 epochs of 8 steps."""
    root = tmp_path_factory.mktemp("unbroken")
    runs = {variant: make_run(root / variant, shards, variant=variant) for variant in VARIANTS}
    torch.set_num_threads(1)
    for run_dir in runs.values():
        assert train(run_dir) is True
    return runs


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_lowers_train_and_validation_loss(unbroken: dict[str, Path], variant: str) -> None:
    epochs = [line for line in read_metrics(unbroken[variant]) if isinstance(line, EpochLine)]
    assert [line.epoch for line in epochs] == [1, 2, 3]
    assert epochs[-1].train_loss < 0.99 * epochs[0].train_loss
    assert (epochs[-1].val_loss or 0.0) < 0.99 * (epochs[0].val_loss or 0.0)


def test_epoch_loss_is_the_mean_of_its_steps(unbroken: dict[str, Path]) -> None:
    steps = [line.loss for line in steps_of(unbroken["linear"])[:8]]
    first_epoch = next(line for line in read_metrics(unbroken["linear"]) if isinstance(line, EpochLine))
    assert first_epoch.train_loss == pytest.approx(sum(steps) / 8, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_and_resumed_run_is_bit_identical(
    tmp_path: Path, shards: Path, unbroken: dict[str, Path], variant: str
) -> None:
    """Stopped after 1, 5 and 6 more steps: in the middle of epochs and on an epoch's last step."""
    run_dir = make_run(tmp_path / "run", shards, variant=variant)
    for steps in (1, 7, 5):
        answers = iter([False] * (steps - 1) + [True])
        assert train(run_dir, should_stop=lambda answers=answers: next(answers)) is False
    assert train(run_dir) is True
    assert_same_result(run_dir, unbroken[variant])


@pytest.mark.slow
def test_killed_run_is_bit_identical(tmp_path: Path, shards: Path, unbroken: dict[str, Path]) -> None:
    """kill -9 at random moments, also while a checkpoint is written: a save follows every step here."""
    settings = {"checkpoint_every_min": 1e-9, "log_every_steps": 1}
    run_dir = make_run(tmp_path / "run", shards, variant="linear", **settings)
    rng = random.Random(7)
    kills = 0
    while not is_trained(run_dir) and kills < 4:
        before = len(read_metrics(run_dir))
        child = start_process(train, run_dir)
        while len(read_metrics(run_dir)) <= before + 2 and child.is_alive():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.join()
        kills += 1
    assert kills >= 2
    assert train(run_dir) is True
    assert_same_result(run_dir, unbroken["linear"])


def test_interrupted_command_saves_and_says_how_to_go_on(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "run", shards, epochs=10_000)
    child = subprocess.Popen(
        [sys.executable, "jobs/train.py", str(run_dir)],
        cwd=REPOSITORY,
        env=child_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not steps_of(run_dir):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    _, told_user = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    assert "to go on: python jobs/train.py" in told_user
    latest = checkpoint.find_latest(run_dir)
    assert latest is not None
    assert checkpoint.load_state(latest)["step"] == logged(run_dir)[-1].step


def test_damaged_newest_checkpoint_costs_only_its_steps(
    tmp_path: Path, shards: Path, unbroken: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = make_run(tmp_path / "run", shards, checkpoint_every_min=1e-9)
    answers = iter([False] * 9 + [True])
    train(run_dir, should_stop=lambda: next(answers))
    (newest_step, newest), (step_before, _) = checkpoint_dirs(run_dir).items()
    assert 0 < step_before < newest_step == 10
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    assert train(run_dir) is True
    assert "skipping damaged checkpoint" in caplog.text
    assert [line.step for line in read_metrics(run_dir) if isinstance(line, StartLine)] == [0, step_before]
    assert_same_result(run_dir, unbroken["linear"])


def test_run_that_is_being_trained_is_not_trained_twice(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process is real; when it is killed, its lock is gone with it."""
    run_dir = make_run(tmp_path / "run", shards, epochs=10_000, checkpoint_every_min=1000)
    other = start_process(train, run_dir)
    try:
        while not steps_of(run_dir):
            assert other.is_alive()
            time.sleep(0.01)
        monkeypatch.setattr(trainer, "LOCK_WAIT_S", 0.1)
        with pytest.raises(RunError, match="another process is training"):
            train(run_dir)
    finally:
        other.kill()
        other.join()
    assert train(run_dir, should_stop=lambda: True) is False


def test_finished_run_is_left_alone(unbroken: dict[str, Path]) -> None:
    before = (unbroken["linear"] / "metrics.jsonl").read_bytes()
    assert train(unbroken["linear"]) is True
    assert (unbroken["linear"] / "metrics.jsonl").read_bytes() == before


def test_gradient_accumulation_changes_no_result(
    tmp_path: Path, shards: Path, unbroken: dict[str, Path]
) -> None:
    """3 passes over 8 images: parts of 3, 3 and 2, whose sums add up to the batch's."""
    run_dir = make_run(tmp_path / "run", shards, accumulate=3, precision="fp64")
    whole = make_run(tmp_path / "whole", shards, precision="fp64")
    train(run_dir)
    train(whole)
    for left, right in zip(logged(run_dir), logged(whole), strict=True):
        assert type(left) is type(right)
        assert asdict(left) == pytest.approx(asdict(right), rel=1e-9)


def test_loss_that_is_not_finite_names_step_and_last_good_checkpoint(tmp_path: Path, shards: Path) -> None:
    """A learning rate that throws the weights to infinity in a few steps."""
    run_dir = make_run(tmp_path / "run", shards, lr=1e30, variant="direct", checkpoint_every_min=1e-9)
    with pytest.raises(RunError, match=r"not finite at step \d+; last good checkpoint: .*step_\d+"):
        train(run_dir)
    latest = checkpoint.find_latest(run_dir)
    assert latest is not None
    assert all(tensor.isfinite().all() for tensor in load_file(latest / checkpoint.WEIGHTS).values())
    assert not is_trained(run_dir)


def test_clipping_bounds_the_step_and_reports_the_norm_before(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "run", shards, clip_norm=0.5, max_steps=2)
    train(run_dir)
    norms = [line.grad_norm or 0.0 for line in steps_of(run_dir)]
    assert all(norm > 0.5 for norm in norms)


def test_cosine_schedule_with_warm_up_is_written_down(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "run", shards, schedule="cosine", warmup_steps=4, max_steps=12, lr=1e-3)
    train(run_dir)
    rates = [line.lr for line in steps_of(run_dir)]
    assert rates[:5] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])
    assert rates[8] == pytest.approx(0.5e-3)  # half of the way from step 4 to step 12
    assert rates[11] == pytest.approx(0.5e-3 * (1 + math.cos(math.pi * 7 / 8)))


def test_other_data_than_the_run_began_with_are_refused(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "run", shards)
    train(run_dir, should_stop=lambda: True)
    others = make_shards(tmp_path / "shards", {"train": 71, "val": 10, "test": 13})
    text = (run_dir / "run.yaml").read_text().replace(str(shards), str(others))
    (run_dir / "run.yaml").write_text(text)
    with pytest.raises(DataError, match="the run began with data"):
        train(run_dir)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 71}, "batch_size 71 does not fit"),
        ({"image_size_px": 64}, "32 px wide, the run wants 64"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(
    tmp_path: Path, shards: Path, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        train(make_run(tmp_path / "run", shards, **settings))


def test_full_disk_is_one_clear_error_and_costs_nothing(tmp_path: Path, shards: Path) -> None:
    """A real full disk: a file system of 64 KiB, where even the tiny checkpoint does not fit."""
    mount = tmp_path / "small"
    mount.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    try:
        run_dir = make_run(mount / "run", shards, widths=(4, 8, 16, 64))
        with pytest.raises(RunError, match=r"cannot (save|write) .*No space left on device"):
            train(run_dir)
        assert list((run_dir / "checkpoints").iterdir()) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_run_yaml_replays_the_run(tmp_path: Path, unbroken: dict[str, Path]) -> None:
    run_dir = tmp_path / "again"
    command = [
        sys.executable,
        "jobs/train.py",
        str(run_dir),
        "--config",
        str(unbroken["linear"] / "run.yaml"),
    ]
    subprocess.run(command, cwd=REPOSITORY, env=child_environment(), check=True, stderr=subprocess.DEVNULL)
    assert read_run(run_dir) == read_run(unbroken["linear"])
    assert_same_result(run_dir, unbroken["linear"])


def test_device_tier_sees_the_same_batches(tmp_path: Path, shards: Path, unbroken: dict[str, Path]) -> None:
    run_dir = make_run(tmp_path / "run", shards, loader="device")
    train(run_dir)
    assert_same_result(run_dir, unbroken["linear"])


def test_image_damaged_on_disk_stops_the_training(tmp_path: Path) -> None:
    data = make_shards(tmp_path / "shards", {"train": 16, "val": 2, "test": 2})
    shard = data / "train-00000.h5"
    content = bytearray(shard.read_bytes())
    place = content.index(blob(3).tobytes())
    content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="image 'train/3' is damaged"):
        train(make_run(tmp_path / "run", data))


def test_defaults_are_the_report() -> None:
    config = RunConfig()
    assert (config.lr, config.batch_size, config.epochs, config.beta) == (1e-3, 32, 15, 1e-4)
    assert (config.image_size_px, config.widths, config.latent_dim) == (256, (32, 64, 128, 256), 256)

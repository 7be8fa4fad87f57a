"""jobs/train.py: a mistake is one line, and leaves nothing behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doors import Result, run_door
from tiny import REPOSITORY, child_environment, make_run
from warm import accelerate_launch, start_process

from vae.metrics import read_metrics
from vae.provenance import read_attempts
from vae.run_dir import saved_step
from vae.study import read_run


def train(run_dir: Path, *words: str | Path) -> Result:
    return run_door("train", run_dir, *words)


def test_a_run_that_cannot_begin_leaves_nothing_behind(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "runs").mkdir()
    words = ("--run.data", shards, "--run.image_size_px", "32", "--run.batch_size", "500")
    done = train(tmp_path / "runs" / "new" / "linear-s0", *words)
    assert done.returncode == 2
    assert "batch_size 500 does not fit" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("name", ["direct-s0", "linear-s3"])
def test_a_new_run_named_after_another_kind_is_refused(tmp_path: Path, shards: Path, name: str) -> None:
    done = train(tmp_path / name, "--run.data", shards)
    assert done.returncode == 2
    assert f"error: {name} is the name of a run of another kind" in done.stderr
    variant, seed = name.split("-s")
    assert f"add --run.variant {variant} --run.seed {seed}" in done.stderr
    assert not (tmp_path / name).exists()


def test_a_run_that_was_there_before_stays(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "linear-s0", shards, batch_size=500)
    done = train(run_dir)
    assert done.returncode == 2
    assert (run_dir / "run.yaml").exists()
    done = train(run_dir, "--run.lr", "0.5")
    assert "hint: use another folder (jobs/launch.py: another --study), or" in done.stderr


@pytest.mark.parametrize("file", ["nope.yaml", "."])
def test_a_settings_file_that_is_not_there_is_told_with_what_would_be(tmp_path: Path, file: str) -> None:
    done = train(tmp_path / "a", "--config", tmp_path / file)
    assert done.returncode == 2
    expected = f"error: no settings file {tmp_path / file}\nhint: give the run.yaml of a run"
    assert done.stderr.startswith(expected)


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path, shards: Path) -> None:
    """And all this without torch.compile and DTensor, which nobody has asked for."""
    run_dir = make_run(tmp_path / "linear-s0", shards, epochs=10_000, max_steps=400, log_every_steps=1)
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / "jobs" / "train.py"), str(run_dir)]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, env=child_environment(), stderr=said)
    give_up = time.monotonic() + 60
    while len(read_metrics(run_dir)) < 10:
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    text = (tmp_path / "said").read_text()
    assert process.returncode == 128 + signal.SIGINT, text
    assert f"to go on: python jobs/train.py {run_dir}\n" in text
    imported = {line.split("|")[-1].strip() for line in text.splitlines()}
    assert "vae.training.eager_adam" in imported
    assert not imported & {"torch._dynamo", "torch._inductor", "torch.distributed.tensor"}
    step = saved_step(run_dir)
    assert 0 < step < 400
    done = train(run_dir)
    assert (done.returncode, done.stdout) == (0, f"{run_dir}\n"), done.stderr
    assert [attempt.from_step for attempt in read_attempts(run_dir)] == [0, step]


def test_the_images_say_how_large_they_are(tmp_path: Path, shards: Path) -> None:
    words = ("--run.data", shards, "--run.epochs", "1", "--run.batch_size", "8", "--run.trackers", "[]")
    done = train(tmp_path / "linear-s0", *words, "--run.widths", "[4,8,8,16]", "--run.latent_dim", "8")
    assert done.returncode == 0, done.stderr
    assert read_run(tmp_path / "linear-s0").image_size_px == 32
    done = train(tmp_path / "other", *words, "--run.image_size_px", "64")
    assert done.returncode == 2
    assert "the packed images are 32 px wide, the run wants 64" in done.stderr


@pytest.mark.slow
def test_accelerate_launch_that_starts_one_process_of_two_is_refused(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "linear-s0", shards, epochs=1)
    door = [str(REPOSITORY / "jobs" / "train.py"), str(run_dir)]

    def launch(count: int) -> tuple[int | None, str]:
        """Its exit code and its talk."""
        said = tmp_path / str(count)
        process = start_process(accelerate_launch, "--cpu", "--num_processes", str(count), *door, stderr=said)
        process.join(120)
        return process.exitcode, said.read_text()

    exit_code, said = launch(2)
    assert exit_code == 1
    assert "error: accelerate launch has started one process and not --num_processes" in said
    assert "hint: torchrun --nproc-per-node N jobs/train.py" in said
    assert read_attempts(run_dir) == ()
    exit_code, said = launch(1)
    assert exit_code == 0, said

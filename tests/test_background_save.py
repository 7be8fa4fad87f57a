"""What is written beside the steps is what would have been written at once, whole or not at all."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny import make_run
from warm import start_process, train_with_small_files

from data_prep.errors import RunError
from vae.events import Saved, read_events
from vae.metrics import SaveLine, StepLine, read_metrics
from vae.run_dir import checkpoint_dir, saved_step, unfinished_checkpoints
from vae.training import checkpoint
from vae.training.background_save import SaveClock, StateCopy
from vae.training.trainer import train

ALL_THE_TIME = {"checkpoint_every_min": 1e-9, "keep_checkpoints": 30}
# So that a file of a checkpoint is the largest of the run: 0.8 MB of weights, 1.6 MB of state.
LARGE = {"widths": (8, 16, 32, 64), "latent_dim": 256}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def saves_of(run_dir: Path) -> list[SaveLine]:
    return [line for line in read_metrics(run_dir) if isinstance(line, SaveLine)]


@pytest.mark.parametrize("settings", [{}, {"precision": "fp64", "variant": "direct"}], ids=["fp32", "fp64"])
def test_what_is_written_beside_the_steps_is_what_a_stop_writes_at_once(
    tmp_path: Path, shards: Path, settings: dict[str, str]
) -> None:
    run_dir = make_run(tmp_path / "run", shards, **ALL_THE_TIME, **settings)
    stopped = make_run(tmp_path / "stopped", shards, **settings)
    assert train(run_dir) is True
    beside = next(line.step for line in saves_of(run_dir) if line.beside_s)
    steps = iter(range(1, beside))
    assert train(stopped, lambda: next(steps, None) is None) is False
    files = [checkpoint_dir(run, beside) for run in (run_dir, stopped)]
    for name in ("model.safetensors", "state.pt", "meta.json"):
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes()
    assert checkpoint.damage(files[0]) is None


def test_a_save_is_written_down_when_it_is_whole_with_what_it_cost(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "run", shards, **ALL_THE_TIME)
    train(run_dir)
    *beside, last = saves = saves_of(run_dir)
    assert beside
    assert all(line.beside_s > 0 for line in beside)
    assert (last.step, last.beside_s) == (24, 0)
    assert last.save_s == pytest.approx(sum(line.seconds for line in saves), abs=0.01)
    events = [(event.step, event.seconds) for event in read_events(run_dir) if isinstance(event, Saved)]
    assert events == [(line.step, line.seconds) for line in saves]
    # steps went on: what was taken meanwhile stands before the line of the save
    steps = [line.step for line in read_metrics(run_dir) if isinstance(line, (StepLine, SaveLine))]
    assert max(steps[: steps.index(last.step)]) < last.step
    assert [*checkpoint.checkpoint_dirs(run_dir)] == [line.step for line in reversed(saves)]


@pytest.mark.parametrize("size", [1_000, 500_000, 790_000, 1_600_000])
def test_a_kill_at_any_byte_leaves_the_checkpoint_before(tmp_path: Path, shards: Path, size: int) -> None:
    """The system ends the process at that byte of the first file that becomes so large."""
    run_dir = make_run(tmp_path / "run", shards, **ALL_THE_TIME, **LARGE)
    assert train(run_dir, lambda: True) is False
    whole = {path: path.read_bytes() for path in checkpoint_dir(run_dir, 1).iterdir()}
    child = start_process(train_with_small_files, run_dir, size)
    child.join(60)
    assert child.exitcode == -signal.SIGXFSZ
    assert saved_step(run_dir) == 1
    assert whole == {path: path.read_bytes() for path in checkpoint_dir(run_dir, 1).iterdir()}
    assert checkpoint.find_latest(run_dir) == checkpoint_dir(run_dir, 1)
    if size > 1_000:  # there it was another file that could not be written
        assert len(unfinished_checkpoints(run_dir)) == 1


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """No file of this process becomes larger: a write behind that fails, as it would on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [500_000, 1_000_000], ids=["weights", "state"])
def test_a_thread_that_cannot_write_ends_the_training_in_one_line(
    tmp_path: Path, shards: Path, size: int
) -> None:
    run_dir = make_run(tmp_path / "run", shards, **LARGE, epochs=1000)
    with (
        small_files(size),
        pytest.raises(RunError, match=r"cannot save checkpoint .*File too large") as caught,
    ):
        train(run_dir)
    assert "step_00000008" in str(caught.value)  # the end of the first epoch, which is saved beside the next
    assert "make room there" in str(caught.value.hint)
    assert list((run_dir / "checkpoints").iterdir()) == []
    assert saves_of(run_dir) == []
    assert train(run_dir, lambda: True) is False


def test_a_copy_stays_as_it_was_and_the_next_one_takes_no_more_memory() -> None:
    weights = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    state = {"a": {"w": weights, "betas": (0.9, 0.99)}, "groups": [{"lr": 1e-3, "step": torch.tensor(3.0)}]}
    copies = StateCopy()
    first = copies.take(state)
    weights += 1
    assert first["a"]["w"].equal(weights - 1)
    assert first["a"]["w"].stride() == weights.stride()
    assert (first["a"]["betas"], first["groups"][0]["lr"]) == ((0.9, 0.99), 1e-3)
    assert first["groups"][0]["step"] == 3
    second = copies.take(state)
    assert second["a"]["w"].equal(weights)
    assert second["a"]["w"].data_ptr() == first["a"]["w"].data_ptr()


@pytest.mark.gpu
def test_a_copy_from_a_gpu_is_of_the_moment_at_which_it_was_taken() -> None:
    """The step behind it is in the queue long before the copy is complete."""
    weights = torch.zeros(1 << 26, device="cuda")
    copies = StateCopy()
    for number in range(3):
        copy = copies.take({"w": weights})
        weights += 1
        copies.wait()
        assert copy["w"].is_pinned()
        assert copy["w"].eq(number).all()


def test_saves_are_due_by_time_and_by_epochs_worth_saving() -> None:
    clock = SaveClock(every_min=1.0)
    assert clock.is_due(ends_epoch=True)
    assert not clock.is_due(ends_epoch=False)
    clock.note(stall_s=5.0)
    assert not clock.is_due(ends_epoch=True)  # 50 s of training must pass first
    clock.last_s -= 51
    assert clock.is_due(ends_epoch=True)
    clock.note_beside(0.5)
    assert not clock.is_due(ends_epoch=True)
    clock.last_s -= 10
    assert clock.is_due(ends_epoch=False)

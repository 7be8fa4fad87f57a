"""Checkpoints: whole or absent, newest whole first, never unpickled blindly."""

import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from tiny import child_environment, make_run
from torch import Tensor

from data_prep.errors import RunError
from vae.run_dir import DONE_FILE, checkpoint_dir
from vae.training import checkpoint
from vae.training.checkpoint import StateDict
from vae.training.trainer import train

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3)}


def save(run_dir: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(run_dir, step, WEIGHTS, {"step": step, "rng": torch.get_rng_state()}, keep)


def test_saved_state_comes_back(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    assert checkpoint.find_latest(tmp_path) == folder
    assert torch.equal(load_file(folder / checkpoint.WEIGHTS)["w"], WEIGHTS["w"])
    state = checkpoint.load_state(folder)
    assert state["step"] == 7
    assert torch.equal(state["rng"], torch.get_rng_state())


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 90, 100_000_000, 7):
        save(tmp_path, step, keep=3)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_00000007", "step_00000090", "step_100000000"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "meta.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_any_damage_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    before, newest = save(tmp_path, 1), save(tmp_path, 2)
    path = newest / name
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        place = content.index(b'"sha256"') if name == "meta.json" else len(content) // 2
        content[place] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    assert checkpoint.find_latest(tmp_path) == before
    assert f"skipping damaged checkpoint {newest}" in caplog.text


def test_a_damaged_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    (folder / "state.pt").write_bytes(b"")
    assert checkpoint.damage(save(tmp_path, 3)) is None


def test_what_a_killed_save_leaves_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    """A process killed in the middle of a save, for real: it stops before the rename."""
    code = (
        "import os, signal, sys, torch; from pathlib import Path; from vae.training import checkpoint\n"
        "checkpoint.write_record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.save(Path(sys.argv[1]), 4, {'w': torch.zeros(3)}, {}, 2)"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=child_environment(), check=False)
    assert child.returncode == -9
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert checkpoint.find_latest(tmp_path) is None
    folder = save(tmp_path, 5)
    assert list((tmp_path / "checkpoints").iterdir()) == [folder]


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    torch.save({"step": Evil(tmp_path / "ran")}, folder / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load_state(folder)
    assert not (tmp_path / "ran").exists()


def test_trained_model_is_loaded_and_checked(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "run", shards, max_steps=1)
    with pytest.raises(RunError, match="not trained to the end"):
        checkpoint.load_trained(run_dir)
    train(run_dir)
    model, done = checkpoint.load_trained(run_dir)
    assert not model.training
    weights = checkpoint_dir(run_dir, 1) / "model.safetensors"
    assert checkpoint.sha256_file(weights) == done.weights_sha256
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RunError, match="missing or damaged"):
        checkpoint.load_trained(run_dir)


# --- whole by digest, but not ours ---------------------------------------------------------------


def forge(folder: Path, name: str, content: bytes) -> None:
    """Give a file of a checkpoint another content, and the checkpoint the digest of that."""
    (folder / name).write_bytes(content)
    meta = json.loads((folder / "meta.json").read_text())
    meta["sha256"][name] = hashlib.sha256(content).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))


def as_saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run that was stopped at step 3 of 24, and was saved there and nowhere else."""
    run_dir, steps = make_run(tmp_path_factory.mktemp("runs") / "linear-s0", shards), iter(range(2))
    train(run_dir, lambda: next(steps, None) is None)
    return run_dir


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Path:
    """The checkpoint of a copy of that run."""
    run_dir = Path(shutil.copytree(stopped_run, tmp_path / "linear-s0"))
    return checkpoint_dir(run_dir, 3)


def deflated(content: bytes) -> bytes:
    """The same archive, compressed, with a gigabyte of zeros in it."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            with old.open(entry) as file:
                file._expected_crc = None  # type: ignore[attr-defined]  # torch has left it out
                new.writestr(entry.filename, file.read())
        with new.open("archive/data/99", "w") as zeros:
            for _ in range(256):
                zeros.write(bytes(1 << 22))
    return buffer.getvalue()


CHANGES: dict[str, Callable[[StateDict], object]] = {
    "a list": lambda state: [1, 2],
    "an odd dict": lambda state: {"a": 1},
    "a step that is a word": lambda state: {**state, "step": "x"},
    "a step of another folder": lambda state: {**state, "step": 1_000_000},
    "a negative step": lambda state: {**state, "step": -5},
    "a step that is a tensor": lambda state: {**state, "step": torch.tensor(3)},
    "sums of another length": lambda state: {**state, "epoch_sums": [1.0]},
    "data without a fingerprint": lambda state: {**state, "data_fingerprint": None},
    "another random state": lambda state: {**state, "rng": torch.zeros(3, dtype=torch.uint8)},
    "a random state that is none": lambda state: {**state, "rng": torch.full_like(state["rng"], 255)},
    "no optimiser": lambda state: {**state, "optimizer": None},
    "an optimiser without groups": lambda state: {**state, "optimizer": {"state": {}, "param_groups": []}},
    "an optimiser with odd groups": lambda state: {**state, "optimizer": {"state": 1, "param_groups": "x"}},
    "odd moments": lambda state: with_moments(state, {"a": torch.zeros(1)}),
    "moments of another shape": lambda state: with_moments(
        state, {"step": torch.tensor(3.0), "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}
    ),
    "moments that are words": lambda state: with_moments(state, {"step": "x"}),
}


def with_moments(state: StateDict, moments: dict[str, object]) -> StateDict:
    optimizer = {**state["optimizer"], "state": {**state["optimizer"]["state"], 0: moments}}
    return {**state, "optimizer": optimizer}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_that_is_not_ours_is_refused_in_one_line(stopped: Path, change: str) -> None:
    forge(stopped, "state.pt", as_saved(CHANGES[change](checkpoint.load_state(stopped))))
    with pytest.raises(RunError, match=r"does not hold a state of this|holds the state of another") as caught:
        train(stopped.parent.parent)
    assert str(stopped) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "remove that checkpoint" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["code", "bomb", "text", "nothing"])
def test_a_state_that_is_no_archive_of_tensors_is_refused_and_never_executed(
    stopped: Path, tmp_path: Path, kind: str
) -> None:
    contents = {
        "code": as_saved({"step": Evil(tmp_path / "ran")}),
        "bomb": deflated((stopped / "state.pt").read_bytes()) if kind == "bomb" else b"",
        "text": pickle.dumps(Evil(tmp_path / "ran")),
        "nothing": b"",
    }
    forge(stopped, "state.pt", contents[kind])
    with pytest.raises(RunError, match="does not hold a state of this training: "):
        train(stopped.parent.parent)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("length", [0, (1 << 20) + 1, 100_000_000, (1 << 64) - 1])
def test_weights_with_a_huge_header_are_passed_over(
    stopped: Path, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    forge(stopped, "model.safetensors", length.to_bytes(8, "little") + b" " * ((1 << 20) + 8))
    assert checkpoint.find_latest(stopped.parent.parent) is None
    assert "model.safetensors has a header of" in caplog.text


@pytest.mark.parametrize("tensors", [{}, {"w": torch.zeros(3)}], ids=["none", "others"])
def test_weights_of_another_model_are_refused_in_one_line(stopped: Path, tensors: dict[str, Tensor]) -> None:
    forge(stopped, "model.safetensors", safetensors_bytes(tensors))
    with pytest.raises(RunError, match="holds the weights of another model: ") as caught:
        train(stopped.parent.parent)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(
    stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    further = checkpoint_dir(stopped.parent.parent, 1_000_000)
    shutil.copytree(stopped, further)
    assert checkpoint.find_latest(stopped.parent.parent) == stopped
    assert f"skipping damaged checkpoint {further}: meta.json belongs to another checkpoint" in caplog.text


def test_a_checkpoint_beyond_the_end_of_the_run_is_refused_in_one_line(stopped: Path) -> None:
    """As whole as any, only further than the run ever gets."""
    run_dir = stopped.parent.parent
    state = {**checkpoint.load_state(stopped), "step": 1_000_000}
    checkpoint.save(run_dir, 1_000_000, load_file(stopped / "model.safetensors"), state, keep=2)
    with pytest.raises(RunError, match="is at step 1,000,000 of a run of 24"):
        train(run_dir)
    shutil.rmtree(checkpoint_dir(run_dir, 1_000_000))
    assert train(run_dir) is True


def test_final_weights_that_are_not_ours_are_refused_in_one_line(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "run", shards, max_steps=1)
    train(run_dir)
    content = safetensors_bytes({})
    (checkpoint_dir(run_dir, 1) / "model.safetensors").write_bytes(content)
    done = json.loads((run_dir / DONE_FILE).read_text())
    done["weights_sha256"] = hashlib.sha256(content).hexdigest()
    (run_dir / DONE_FILE).write_text(json.dumps(done))
    with pytest.raises(RunError, match="holds the weights of another model: "):
        checkpoint.load_trained(run_dir)

"""Checkpoints: whole or absent, newest whole first, never unpickled blindly."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import child_environment, make_run

from data_prep.errors import RunError
from vae.run_dir import checkpoint_dir
from vae.training import checkpoint
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

"""jobs/train.py: a mistake is one line, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import REPOSITORY, child_environment, make_run


def train(run_dir: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / "train.py"), str(run_dir), *map(str, words)]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=120)


def test_a_run_that_cannot_begin_leaves_nothing_behind(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "runs").mkdir()
    words = ("--run.data", shards, "--run.image_size_px", "32", "--run.batch_size", "500")
    done = train(tmp_path / "runs" / "new" / "linear-s0", *words)
    assert done.returncode == 2
    assert "batch_size 500 does not fit" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


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
    told = f"error: no settings file {tmp_path / file}\nhint: give the run.yaml of a run"
    assert done.stderr.startswith(told)

"""jobs/logs.py: lists, prints and follows what the jobs of a run have written."""

import os
from pathlib import Path

import pytest
from doors import run_door
from fake_slurm import FakeSlurm
from slurm_jobs import TRAIN

from slurm.job_records import add_record
from vae.run_dir import log_path
from vae.study import Study, prepare_study


@pytest.fixture
def run_dir(tmp_path: Path, fake_slurm: FakeSlurm) -> Path:
    """A run that was trained in two attempts on two ranks."""
    prepare_study(tmp_path / "chest", Study("chest", ("linear-s0", "direct-s0"), "smoke"))
    add_record(tmp_path / "chest", TRAIN)
    run_dir = tmp_path / "chest" / "linear-s0"
    (run_dir / "logs").mkdir(parents=True)
    for restart in (0, 1):
        for rank in (0, 1):
            path = log_path(run_dir, "train", f"8_0-r{restart}", rank)
            path.write_text(f"attempt {restart}\nrank {rank}\n")
            os.utime(path, (100 * restart + rank, 100 * restart + rank))
    return run_dir


def test_the_newest_attempt_is_shown_unless_another_is_asked_for(run_dir: Path) -> None:
    assert run_door("logs", run_dir).stdout == "attempt 1\nrank 0\n"
    older = run_door("logs", run_dir, "--attempt", "1", "--rank", "1", "--lines", "1")
    assert older.stdout == "rank 1\n"
    listed = run_door("logs", run_dir, "--list").stdout.splitlines()
    assert listed[0].startswith("1  train, job 8_0; rank 0, 1; last written 1970-01-01 ")
    assert listed[1].startswith("2  train, job 8_0, restart 1; rank 0, 1; ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--attempt", "3"), "there is no attempt 3\nhint: choose from 1 to 2"),
        (("--attempt", "0"), "there is no attempt 0\n"),
        (("--rank", "2"), "train, job 8_0, restart 1 has no log of rank 2\nhint: it has rank 0, 1"),
        (("--lines", "0"), "--lines 0; allowed: at least 1"),
    ],
)
def test_a_log_that_is_not_there_names_those_that_are(
    run_dir: Path, words: tuple[str, ...], message: str
) -> None:
    shown = run_door("logs", run_dir, *words)
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"error: {message}")


def test_a_study_is_no_run_and_a_run_without_log_says_why(run_dir: Path) -> None:
    assert "give one of its runs: " in run_door("logs", run_dir.parent).stderr
    (run_dir.parent / "direct-s0").mkdir()
    (run_dir.parent / "jobs.json").unlink()
    message = "error: direct-s0 has no log yet\nhint: direct-s0: has not been launched yet; launch it.\n"
    assert run_door("logs", run_dir.parent / "direct-s0").stderr == message


@pytest.mark.parametrize("other", [("--list",), ("--attempt", "1"), ("--lines", "3")])
def test_following_takes_the_newest_attempt_from_its_beginning(run_dir: Path, other: tuple[str, ...]) -> None:
    done = run_door("logs", run_dir, "--follow", *other)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --follow shows the newest attempt")


def test_following_a_run_that_nothing_changes_any_more_ends(
    run_dir: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm.take_over_time(monkeypatch)
    (run_dir.parent / "jobs.json").unlink()
    shown = run_door("logs", run_dir, "--follow")
    assert (shown.returncode, shown.stdout) == (0, "attempt 1\nrank 0\n")
    assert "linear-s0: stopped and no job of it is known" in shown.stderr

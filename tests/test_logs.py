"""slurm/logs.py and jobs/logs.py: which log is the newest, and which line says what went wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import REPOSITORY, child_environment

from slurm.diagnose.log_files import find_attempts, last_error, last_notice
from slurm.job_records import JobRecord, add_record
from vae.study import Study, prepare_study

TRAIN = JobRecord("8", "train", "slurm", True, (0, 1), "login")
LOCAL = JobRecord("41", "train", "local", False, (0,), "here")
TRACEBACK = """\
ValueError: of an earlier time
Traceback (most recent call last):
  File "x.py", line 1, in f
data_prep.errors.RunError: linear-s0: loss is nan at step 5.
submitit ERROR (2026) - Submitted job triggered an exception
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that was trained in two attempts on two ranks."""
    prepare_study(tmp_path / "chest", Study("chest", ("linear-s0", "direct-s0"), "smoke"))
    add_record(tmp_path / "chest", TRAIN)
    run_dir = tmp_path / "chest" / "linear-s0"
    for restart in (0, 1):
        for rank in (0, 1):
            name = f"train-8_0-r{restart}-rank{rank}.log"
            write(run_dir / "logs" / name, f"attempt {restart}\nrank {rank}\n", 100 * restart + rank)
    return run_dir


def write(path: Path, text: str, time: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time, time))


def logs(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / "logs.py"), *words]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=60)


def test_the_newest_attempt_is_shown_unless_another_is_asked_for(run_dir: Path) -> None:
    assert logs(str(run_dir)).stdout == "attempt 1\nrank 0\n"
    assert logs(str(run_dir), "--attempt", "1", "--rank", "1", "--lines", "1").stdout == "rank 1\n"
    listed = logs(str(run_dir), "--list").stdout.splitlines()
    assert listed[0].startswith("1  train, job 8_0; rank 0, 1; last written 1970-01-01 ")
    assert listed[1].startswith("2  train, job 8_0, restart 1; rank 0, 1; ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--attempt", "3"), "there is no attempt 3\nhint: choose from 1 to 2"),
        (("--attempt", "0"), "there is no attempt 0\n"),
        (("--rank", "2"), "train, job 8_0, restart 1 has no log of rank 2\nhint: it has rank 0, 1"),
        (("--lines", "0"), "--lines 0; allowed: at least 1"),
    ],
)
def test_a_log_that_is_not_there_names_those_that_are(
    run_dir: Path, words: tuple[str, ...], said: str
) -> None:
    shown = logs(str(run_dir), *words)
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"error: {said}")


def test_a_study_is_no_run_and_a_run_without_log_says_why(run_dir: Path) -> None:
    assert "give one of its runs: " in logs(str(run_dir.parent)).stderr
    (run_dir.parent / "direct-s0").mkdir()
    (run_dir.parent / "jobs.json").unlink()
    said = "error: direct-s0 has no log yet\nhint: direct-s0: has not been launched yet; launch it.\n"
    assert logs(str(run_dir.parent / "direct-s0")).stderr == said


@pytest.mark.parametrize("other", [("--list",), ("--attempt", "1"), ("--lines", "3")])
def test_following_takes_the_newest_attempt_from_its_beginning(run_dir: Path, other: tuple[str, ...]) -> None:
    done = logs(f"{run_dir}", "--follow", *other)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --follow shows the newest attempt")


def test_following_a_run_that_nothing_changes_any_more_ends(run_dir: Path) -> None:
    (run_dir.parent / "jobs.json").unlink()
    shown = logs(str(run_dir), "--follow")
    assert (shown.returncode, shown.stdout) == (0, "attempt 1\nrank 0\n")
    assert "linear-s0: stopped and no job of it is known" in shown.stderr


def test_a_job_that_opened_no_log_is_shown_by_what_slurm_caught(run_dir: Path) -> None:
    jobs_dir = run_dir.parent / "jobs"
    write(jobs_dir / "8_1_0.log", "early\n", 1)
    write(jobs_dir / "8_0_0.log", "the log goes on elsewhere\n", 1)
    (early,) = find_attempts(run_dir.parent / "direct-s0", 1, [TRAIN])
    assert early.logs == {0: jobs_dir / "8_1_0.log"}
    assert len(find_attempts(run_dir, 0, [TRAIN])) == 2
    write(jobs_dir / "41_0_log.out", "here\n", 200)
    assert find_attempts(run_dir, 0, [TRAIN, LOCAL])[-1].logs == {0: jobs_dir / "41_0_log.out"}


def test_the_error_is_the_last_one_of_the_rank_that_fell_silent_first(run_dir: Path) -> None:
    assert last_error(run_dir, 0, TRAIN) == ""
    write(run_dir / "logs" / "train-8_0-r0-rank0.log", "KeyError: of an older attempt\n", 50)
    write(run_dir / "logs" / "train-8_0-r1-rank1.log", TRACEBACK, 150)
    write(run_dir / "logs" / "train-8_0-r1-rank0.log", "RuntimeError: connection closed by peer\n", 160)
    assert last_error(run_dir, 0, TRAIN) == "RunError: linear-s0: loss is nan at step 5"


def test_a_setup_line_that_fails_is_the_error_of_the_job(run_dir: Path) -> None:
    said = "/var/spool/slurmd/job00008/slurm_script: line 20: module: command not found\n"
    write(run_dir.parent / "jobs" / "8_0.log", said, 1)
    assert last_error(run_dir, 0, TRAIN) == "line 20: module: command not found"


def test_a_python_that_is_not_there_is_the_error_of_the_job(run_dir: Path) -> None:
    write(run_dir.parent / "jobs" / "8_0_0.log", "task: line 1: /no/python: No such file or directory\n", 1)
    assert last_error(run_dir, 0, TRAIN) == "line 1: /no/python: No such file or directory"


@pytest.mark.parametrize(
    ("log", "notice"),
    [
        ("srun: error: n1: task 0: Exited with exit code 1\n", ""),
        ("srun: error: n1: task 0: Killed\n", "n1: task 0: Killed"),
        (
            "slurmstepd: error: *** JOB 8 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***\n"
            "srun: forcing job termination\nsrun: error: n1: tasks 0-1: Killed\n",
            "*** JOB 8 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***",
        ),
        (
            "srun: error: n2: task 1: Killed\n"
            "slurmstepd-n1: error: *** STEP 8.0 ON n1 CANCELLED AT 2026 ***\n"
            "srun: error: n1: task 0: Terminated\n",
            "n2: task 1: Killed",
        ),
        (
            "slurmstepd-n1: error: *** JOB 8 ON n1 CANCELLED AT 2026 DUE TO JOB REQUEUE ***\n"
            + "srun: something else\n" * 10
            + "srun: error: n1: task 0: Out Of Memory\n",
            "n1: task 0: Out Of Memory",
        ),
    ],
)
def test_what_slurm_itself_says_of_an_end(run_dir: Path, log: str, notice: str) -> None:
    write(run_dir.parent / "jobs" / "8_0.log", log, 1)
    assert last_notice(run_dir.parent, TRAIN, 0) == notice

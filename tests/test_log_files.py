"""slurm/diagnose/log_files.py: which log is the newest, and which line says what went wrong."""

import os
from pathlib import Path

import pytest
from slurm_jobs import LOCAL, TRAIN

from slurm.diagnose.log_files import find_attempts, job_logs, last_error, last_notice
from vae.study import Study, prepare_study

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
    assert last_error(job_logs(run_dir, 0, TRAIN)) == ""
    write(run_dir / "logs" / "train-8_0-r0-rank0.log", "KeyError: of an older attempt\n", 50)
    write(run_dir / "logs" / "train-8_0-r1-rank1.log", TRACEBACK, 150)
    write(run_dir / "logs" / "train-8_0-r1-rank0.log", "RuntimeError: connection closed by peer\n", 160)
    assert last_error(job_logs(run_dir, 0, TRAIN)) == "RunError: linear-s0: loss is nan at step 5"


def test_a_setup_line_that_fails_is_the_error_of_the_job(run_dir: Path) -> None:
    said = "/var/spool/slurmd/job00008/slurm_script: line 20: module: command not found\n"
    write(run_dir.parent / "jobs" / "8_0.log", said, 1)
    assert last_error(job_logs(run_dir, 0, TRAIN)) == "line 20: module: command not found"


def test_a_python_that_is_not_there_is_the_error_of_the_job(run_dir: Path) -> None:
    write(run_dir.parent / "jobs" / "8_0_0.log", "task: line 1: /no/python: No such file or directory\n", 1)
    assert last_error(job_logs(run_dir, 0, TRAIN)) == "line 1: /no/python: No such file or directory"


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


def test_attempts_are_called_by_job_and_restart(run_dir: Path) -> None:
    labels = [attempt.label for attempt in find_attempts(run_dir, 0, [TRAIN])]
    assert labels == ["train, job 8_0", "train, job 8_0, restart 1"]

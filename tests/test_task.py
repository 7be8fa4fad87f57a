"""slurm/node/task.py: a job is a path; whatever runs it goes on from what is on disk."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import child_environment, finish, make_run, score, write_attempts
from warm import start_process

from data_prep.errors import RunError, SettingsError
from slurm.node.environment import single_process
from slurm.node.task import (
    MAX_IDLE_RESTARTS,
    EvaluateTask,
    FinalizeTask,
    PackTask,
    ReportTask,
    Task,
    TrainTask,
    refuse_idle_restarts,
    run_of,
)
from vae.provenance import Attempt
from vae.run_dir import SCORES_FILE
from vae.study import Study, is_trained, prepare_study


@pytest.mark.parametrize(
    "task", [TrainTask("/r"), EvaluateTask("/r"), PackTask("/o", 1, 3), FinalizeTask("/o"), ReportTask("/s")]
)
def test_tasks_are_small_and_run_again_as_they_are(task: Task) -> None:
    text = pickle.dumps(task)
    assert len(text) < 200
    assert pickle.loads(text) == task
    delayed = task.checkpoint()
    assert (delayed.function, delayed.args, delayed.kwargs) == (task, (), {})


def test_training_completes_the_run(tmp_path: Path, shards: Path) -> None:
    run_dir = make_run(tmp_path / "linear-s0", shards, epochs=1)
    process = start_process(TrainTask(str(run_dir)))
    process.join(120)
    assert process.exitcode == 0
    assert is_trained(run_dir)


def test_a_run_that_is_scored_is_not_scored_again(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SLURM may start a job once more that had come to its end."""
    caplog.set_level("INFO")
    prepare_study(tmp_path, Study("chest", ("linear-s0",), "smoke"))
    run_dir = make_run(tmp_path / "linear-s0", shards)
    finish(run_dir)  # such weights could not be scored
    score(run_dir)
    before = (run_dir / SCORES_FILE).read_bytes()
    EvaluateTask(str(run_dir)).work(single_process())
    assert "linear-s0 is scored already" in caplog.text
    assert (run_dir / SCORES_FILE).read_bytes() == before


def attempts(run_dir: Path, *steps: int, job: str) -> None:
    write_attempts(run_dir, *(Attempt(job=job, from_step=step) for step in steps))


def test_a_job_that_never_gets_further_is_stopped(tmp_path: Path) -> None:
    job_env = single_process()
    idle = MAX_IDLE_RESTARTS + 1
    attempts(tmp_path, *[40] * (idle - 1), job=job_env.job)
    refuse_idle_restarts(tmp_path, job_env)
    attempts(tmp_path, *[40] * idle, job=job_env.job)
    with pytest.raises(RunError, match=f"started {idle} times at step 40 without getting further"):
        refuse_idle_restarts(tmp_path, job_env)


def test_progress_or_a_new_launch_allows_more_restarts(tmp_path: Path) -> None:
    job_env = single_process()
    attempts(tmp_path, *range(0, 100, 10), job=job_env.job)
    refuse_idle_restarts(tmp_path, job_env)
    attempts(tmp_path, *[40] * 9, job="another")
    refuse_idle_restarts(tmp_path, job_env)


def test_index_counts_the_runs_of_study_yaml(tmp_path: Path) -> None:
    prepare_study(tmp_path / "chest", Study("chest", ("linear-s0", "direct-s0")))
    assert run_of(tmp_path / "chest", 1) == tmp_path / "chest" / "direct-s0"
    with pytest.raises(SettingsError, match="has no run 2; it has 2: linear-s0, direct-s0"):
        run_of(tmp_path / "chest", 2)


def test_by_hand_a_mistake_is_one_line() -> None:
    words = [sys.executable, "-m", "slurm.node.task", "train", "/no/such/study", "--index", "0"]
    done = subprocess.run(words, env=child_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no study at /no/such/study\nhint: ")

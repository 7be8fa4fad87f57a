"""slurm/node/environment.py: rank, world size, job and times of one process, from what its scheduler set."""

import os
from datetime import datetime

import pytest
from fake_slurm import FakeSlurm
from slurm_jobs import job_env

from slurm.node.environment import Backend, JobEnvironment, find_job_environment, single_process, times_of

SLURM = {
    "SLURM_JOB_ID": "31",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "99",
    "SLURM_JOB_NUM_NODES": "9",
    "SLURMD_NODENAME": "n2",
    "SLURM_CPUS_PER_TASK": "6",
    "SLURM_JOB_NODELIST": "n[1-2]",
}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheduler around the test."""
    for name in [*os.environ]:
        if name.startswith(("SLURM", "SUBMITIT")):
            monkeypatch.delenv(name)


def set_environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_no_scheduler_means_alone() -> None:
    alone = find_job_environment()
    assert (alone.backend, alone.rank, alone.world_size) == (Backend.DEBUG, 0, 1)


def test_a_slurm_task_takes_its_step_over_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SLURM)
    assert find_job_environment() == JobEnvironment(
        backend=Backend.SLURM,
        job="31",
        restart=0,
        rank=3,
        world_size=4,
        local_rank=1,
        num_nodes=2,
        node="n2",
        cpus=6,
    )


def test_an_array_task_is_named_by_array_and_index(monkeypatch: pytest.MonkeyPatch) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "30", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "2"}
    set_environment(monkeypatch, {**SLURM, **array})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    found = find_job_environment()
    assert (found.job, found.tag) == ("30_1", "30_1-r2")
    attempt = found.as_attempt({"ends_s": 7.0})
    assert (attempt.cluster, attempt.job, attempt.restart) == ("slurm", "30_1", 2)
    assert (attempt.nodes, attempt.cpus, attempt.ends_s) == ("n[1-2]", 6, 7.0)
    assert (attempt.gpus, attempt.visible_gpus) == (None, "")
    set_environment(monkeypatch, {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    attempt = found.as_attempt({})
    assert (attempt.gpus, attempt.visible_gpus) == (8, "0,1,2,3")


def test_local_processes_win_over_a_slurm_shell_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    local = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "77",
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_GLOBALID": "1",
    }
    set_environment(monkeypatch, {**SLURM, **local})
    found = find_job_environment()
    assert (found.backend, found.job) == (Backend.LOCAL, "local-77")
    assert (found.rank, found.local_rank, found.world_size, found.num_nodes) == (1, 1, 2, 1)


def test_squeue_says_when_the_job_was_asked_for_and_must_end(fake_slurm: FakeSlurm) -> None:
    """Its times are local; a time that it does not know, or no squeue, means that nothing is known."""
    job = fake_slurm.submit("chest-train")
    times = {"SubmitTime": "16:00", "EligibleTime": "16:01", "StartTime": "16:02", "EndTime": "17:02"}
    fake_slurm.jobs[job].times = {name: f"2026-01-31T{time}:00" for name, time in times.items()}
    rank0 = job_env(job=job)
    known = times_of(rank0)
    assert known["submitted_s"] == datetime(2026, 1, 31, 16).timestamp()
    assert known["allocated_s"] - known["submitted_s"] == 120
    assert known["ends_s"] - known["eligible_s"] == 61 * 60
    fake_slurm.jobs[job].times["EndTime"] = "N/A"
    assert times_of(rank0) == {}
    fake_slurm.uninstall("squeue")
    assert times_of(rank0) == {}


def test_one_process_of_a_job_asks_squeue_and_only_on_slurm(fake_slurm: FakeSlurm) -> None:
    assert times_of(job_env(rank=1)) == {}
    assert times_of(single_process()) == {}
    assert fake_slurm.calls == []

"""slurm/node/environment.py: ranks from the environment, and the rendezvous."""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import ClusterError
from slurm.node.environment import JobEnvironment, find_job_environment, single_process, times_of
from slurm.node.rendezvous import PORTS, free_port, publish_rendezvous, rendezvous, wait_for_rendezvous

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
FIRST = JobEnvironment("slurm", "30_1", 0, 0, 2, 0, 1, "n1", 2)
SECOND = replace(FIRST, rank=1, local_rank=1)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheduler around the test, and no trace of it after."""
    for name in [*os.environ]:
        if name.startswith(("SLURM", "SUBMITIT")):
            monkeypatch.delenv(name)
    for name in (*RANK_VARIABLES, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # restored afterwards, whatever `rendezvous` sets
        del os.environ[name]


def set_environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_no_scheduler_means_alone() -> None:
    job_env = find_job_environment()
    assert (job_env.cluster, job_env.rank, job_env.world_size) == ("debug", 0, 1)


def test_a_slurm_task_takes_its_step_over_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, SLURM)
    assert find_job_environment() == JobEnvironment("slurm", "31", 0, 3, 4, 1, 2, "n2", 6)


def test_an_array_element_is_named_by_array_and_index(monkeypatch: pytest.MonkeyPatch) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "30", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "2"}
    set_environment(monkeypatch, {**SLURM, **array})
    job_env = find_job_environment()
    assert (job_env.job, job_env.tag) == ("30_1", "30_1-r2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    known = {"cluster": "slurm", "job": "30_1", "restart": 2, "nodes": "n[1-2]", "cpus": 6}
    assert job_env.as_attempt() == known
    set_environment(monkeypatch, {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert job_env.as_attempt() == {**known, "gpus": 8, "visible_gpus": "0,1,2,3"}


def test_local_processes_win_over_a_slurm_shell_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    local = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "77",
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_GLOBALID": "1",
    }
    set_environment(monkeypatch, {**SLURM, **local})
    job_env = find_job_environment()
    assert (job_env.cluster, job_env.job, job_env.rank, job_env.world_size) == ("local", "local-77", 1, 2)


def test_one_process_alone_meets_nobody(tmp_path: Path) -> None:
    with rendezvous(single_process(), tmp_path):
        assert os.environ["WORLD_SIZE"] == "1"
        assert "LOCAL_RANK" not in os.environ
    assert list(tmp_path.iterdir()) == []


def test_ranks_find_each_other_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    found: list[tuple[str, int]] = []
    path = tmp_path / f".rendezvous-{FIRST.tag}.json"
    waiter = threading.Thread(target=lambda: found.append(wait_for_rendezvous(SECOND, path, 20)))
    waiter.start()
    with rendezvous(FIRST, tmp_path):
        waiter.join()
        assert found == [("127.0.0.1", int(os.environ["MASTER_PORT"]))]
        got = {name: os.environ[name] for name in RANK_VARIABLES if name != "MASTER_PORT"}
        assert got == {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
        }
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
        assert os.environ["OMP_NUM_THREADS"] == "2"
    assert list(tmp_path.iterdir()) == []


def test_the_address_of_an_earlier_attempt_is_never_taken(tmp_path: Path) -> None:
    old = tmp_path / f".rendezvous-{FIRST.tag}.json"
    old.write_text(json.dumps({"address": "127.0.0.1", "port": 1}))
    restarted = replace(SECOND, restart=1)
    path = tmp_path / f".rendezvous-{restarted.tag}.json"
    with pytest.raises(ClusterError, match=r"rank 1 on n1 waited 0 s in vain for rank 0's .*30_1-r1"):
        wait_for_rendezvous(restarted, path, limit_s=0.3)
    publish_rendezvous(replace(FIRST, restart=1), path)
    assert not old.exists()
    assert wait_for_rendezvous(restarted, path)[1] in PORTS


def test_an_address_that_does_not_resolve_is_named(tmp_path: Path) -> None:
    path = tmp_path / "meeting.json"
    path.write_text(json.dumps({"address": "no-such-node.invalid", "port": 20_000}))
    with pytest.raises(ClusterError, match=r"rank 1 on n1 cannot resolve .* no-such-node\.invalid"):
        wait_for_rendezvous(SECOND, path)


def test_a_free_port_can_be_bound_and_a_taken_one_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("", free_port()))
        listener.listen()
        taken = listener.getsockname()[1]
        monkeypatch.setattr("slurm.node.rendezvous.PORTS", range(taken, taken + 1))
        monkeypatch.setattr("random.SystemRandom.sample", lambda _self, ports, _count: list(ports))
        with pytest.raises(ClusterError, match="no free TCP port"):
            free_port()


def test_slurm_tells_when_the_job_was_asked_for_and_must_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue's times are local; a time that it does not know, or no squeue, means that nothing is known."""
    said = "2026-01-31T16:00:00  2026-01-31T16:01:00  2026-01-31T16:02:00  2026-01-31T17:02:00"
    squeue = tmp_path / "squeue"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    squeue.write_text(f"#!/bin/sh\necho '{said}'\n")
    squeue.chmod(0o755)
    times = times_of(FIRST)
    assert times["allocated_s"] - times["submitted_s"] == 120
    assert times["ends_s"] - times["eligible_s"] == 61 * 60
    squeue.write_text("#!/bin/sh\necho '2026-01-31T16:00:00 N/A N/A N/A'\n")
    assert times_of(FIRST) == {}
    monkeypatch.setenv("PATH", "/nowhere")
    assert times_of(FIRST) == {}
    assert times_of(single_process()) == {}

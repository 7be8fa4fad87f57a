"""slurm/doctor/node_checks.py: verdicts on what the ranks of a probe have written."""

import dataclasses
from pathlib import Path

import pytest
from sites import RUNS_DIR, SAME, probe_of, rank

from slurm.doctor.check import Verdict
from slurm.doctor.node_checks import check_job, check_probe, check_shard
from slurm.doctor.probe import Probe
from slurm.plan import Resources
from slurm.profile import ClusterProfile


def verdicts(probe: Probe) -> dict[str, Verdict]:
    checks = check_probe(probe, SAME, RUNS_DIR, ClusterProfile(), None)
    return {check.name: check.verdict for check in checks}


def test_two_healthy_ranks_are_ok_everywhere() -> None:
    assert set(verdicts(probe_of(rank(0), rank(1))).values()) == {"ok"}


@pytest.mark.parametrize(
    ("facts", "name", "verdict"),
    [
        ({"token": "old"}, "shared folder", "fail"),
        ({"free_gb": 1.0}, "free space", "fail"),
        ({"versions": {**SAME, "torch": "2.4.0"}}, "packages", "warn"),
        ({"versions": {**SAME, "torch": "not installed"}}, "packages", "fail"),
        ({"errors": {"requeue": "there is no scontrol"}}, "requeue", "warn"),
        ({"may_requeue": False}, "requeue", "fail"),
        ({"cpus_usable": 1}, "CPUs per task", "fail"),
        ({"cpus_usable": 2, "cpus_there": 2}, "CPUs per task", "warn"),
        ({"gpus_seen": 0}, "GPUs", "fail"),
        ({"gpus_seen": 0, "has_driver": False}, "GPUs", "warn"),
        ({"gpus_seen": 4}, "GPUs", "warn"),
        ({"errors": {"gpus": "ImportError: libcudart"}}, "GPUs", "fail"),
        ({"address": "", "errors": {"rendezvous": "cannot resolve n1"}}, "address", "fail"),
        ({"all_reduce_ms": {}, "errors": {"rendezvous": "timeout"}}, "all-reduce, gloo", "fail"),
        ({"all_reduce_ms": {"gloo": 1.0}, "doing": "NCCL"}, "all-reduce, NCCL", "fail"),
        ({"doing": "gpus"}, "job", "fail"),
    ],
)
def test_one_sick_node_is_enough(facts: dict[str, object], name: str, verdict: str) -> None:
    assert verdicts(probe_of(rank(0), rank(1, **facts)))[name] == verdict


def test_a_hint_stands_beside_everything_that_is_not_ok() -> None:
    sick = rank(1, token="", cpus_usable=1, gpus_seen=0, may_requeue=False, address="", free_gb=1.0)
    checks = check_probe(probe_of(rank(0), sick), SAME, RUNS_DIR, ClusterProfile(), None)
    assert len([check for check in checks if check.verdict == "fail"]) > 4
    alone = dataclasses.replace(probe_of(rank(0, errors={"cpus": "no /proc"})), resources=Resources())
    checks += check_probe(alone, SAME, RUNS_DIR, ClusterProfile(), None)
    assert all(check.hint for check in checks if check.verdict != "ok")


def test_a_rank_that_wrote_nothing_fails_the_job() -> None:
    check = check_job(probe_of(rank(0), state="FAILED", log="srun: boom"))
    assert check.verdict == "fail"
    assert check.seen == "job 7 on n1 ended (FAILED), rank 1 not done: srun: boom"


def test_a_rank_that_hangs_is_named_with_what_it_looked_at() -> None:
    check = check_job(probe_of(rank(0), rank(1, doing="rendezvous"), state="RUNNING"))
    assert check.seen == "job 7 on n1 and n2 was given up (RUNNING), rank 1 at rendezvous not done"


def test_a_job_that_wrote_nothing_blames_its_log_or_the_folder() -> None:
    silent = check_job(probe_of(state="FAILED"))
    assert silent.verdict == "fail"
    assert "share" in silent.hint
    spoken = check_job(probe_of(state="FAILED", log="module: command not found"))
    assert "module: command not found" in spoken.seen
    assert "setup" in spoken.hint


def test_a_job_that_did_not_start_says_why() -> None:
    check = check_job(probe_of(state="PENDING", reason="BeginTime"))
    assert check.verdict == "fail"
    assert check.seen.startswith("job 7 did not start in 0.2 min: ")
    assert check.seen.endswith(" (BeginTime)")


def test_shards_are_read_on_every_node(tmp_path: Path) -> None:
    good, bad = rank(0, shard="train-00000.h5, 40 images"), rank(1, errors={"shard": "no such file"})
    assert check_shard((good, good), tmp_path).verdict == "ok"
    assert check_shard((good, bad), tmp_path).seen == "not readable on n2 (no such file)"
    checks = check_probe(probe_of(good, bad), SAME, RUNS_DIR, ClusterProfile(), tmp_path)
    assert (checks[-1].name, checks[-1].verdict) == ("shard", "fail")

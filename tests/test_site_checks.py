"""slurm/doctor/site_checks.py: verdicts on what SLURM says of itself."""

import dataclasses

import pytest
from sites import CPU, GPU, SITE

from slurm.doctor.site import Partition, Site
from slurm.doctor.site_checks import (
    CPU_LIMITS,
    GPU_LIMITS,
    check_accounting,
    check_arrays,
    check_kill_wait,
    check_limits,
    check_nodes,
    check_partitions,
    check_preemption,
    check_process_tracking,
    check_requeue,
    check_site,
)
from slurm.profile import ClusterProfile


def test_an_unknown_or_closed_partition_fails_and_names_the_known_ones() -> None:
    (check,) = check_partitions(SITE, "gpus", "partition")
    assert (check.verdict, check.seen) == ("fail", '"gpus" does not exist; known: cpu, gpu, mixed')
    closed = Site(partitions=(dataclasses.replace(GPU, state="DRAIN"),))
    assert check_partitions(closed, "gpu", "partition")[0].verdict == "fail"
    (check,) = check_partitions(closed, "", "partition")
    assert check.seen == "there is no default one; known: gpu"
    assert [check.verdict for check in check_partitions(SITE, "gpu,mixed", "partition")] == ["ok", "ok"]


def test_an_unknown_partition_keeps_only_its_own_checks_back() -> None:
    names = [check.name for check in check_site(SITE, ClusterProfile(partition="gpus"))]
    assert names == ["partition", "requeue", "array size", "kill wait", "process tracking", "accounting"]


def test_time_limits_are_held_against_the_partition_they_are_for() -> None:
    both = ClusterProfile(partition="gpu", cpu_partition="cpu", train_limit_min=1440, pack_limit_min=181)
    verdicts = {check.name: check.verdict for check in check_site(SITE, both)}
    assert (verdicts["limits in gpu"], verdicts["limits in cpu"]) == ("ok", "fail")
    alone = {check.name: check.seen for check in check_site(SITE, ClusterProfile(partition="gpu"))}
    assert alone["limits in gpu"].startswith("train 1440, evaluate 120, pack 240, report 30 min; ")
    assert "limits in cpu" not in alone


@pytest.mark.parametrize(
    ("partition", "settings", "verdict"),
    [
        (GPU, {}, "ok"),
        (GPU, {"gpu_type": "a100"}, "ok"),
        (GPU, {"gpu_type": "h100"}, "fail"),
        (GPU, {"cpus_per_gpu": 65}, "fail"),
        (CPU, {}, "fail"),
        (CPU, {"drop": ("gpus-per-node",)}, "ok"),
        (Partition("empty", num_unusable=3), {}, "fail"),
    ],
)
def test_some_node_must_have_what_a_process_asks_for(
    partition: Partition, settings: dict[str, object], verdict: str
) -> None:
    profile = ClusterProfile(**settings)  # type: ignore[arg-type]
    assert check_nodes(partition, profile).verdict == verdict


def test_limits_above_the_partitions_fail_and_say_which() -> None:
    profile = ClusterProfile(train_limit_min=1440)
    assert check_limits(GPU, profile, GPU_LIMITS).verdict == "ok"
    check = check_limits(CPU, profile, GPU_LIMITS + CPU_LIMITS)
    assert check.verdict == "fail"
    assert check.hint.startswith("set train_limit_min, pack_limit_min in the profile to 180 or less")
    endless = dataclasses.replace(CPU, max_time_min=None)
    assert check_limits(endless, profile, GPU_LIMITS).verdict == "ok"


@pytest.mark.parametrize(
    ("kind", "mode", "grace_s", "parameters", "verdict"),
    [
        ("preempt/none", "REQUEUE", 0, "", "ok"),
        ("preempt/qos", "OFF", 0, "", "ok"),
        ("preempt/qos", "REQUEUE", 60, "preempt_send_user_signal", "ok"),
        ("preempt/qos", "REQUEUE", 60, "idle_on_node_suspend", "warn"),
        ("preempt/qos", "REQUEUE", 0, "preempt_send_user_signal", "warn"),
        ("preempt/qos", "GANG,CANCEL", 60, "preempt_send_user_signal", "warn"),
    ],
)
def test_preemption_without_a_stop_signal_or_return_is_a_warning(
    kind: str, mode: str, grace_s: int, parameters: str, verdict: str
) -> None:
    partition = dataclasses.replace(GPU, preempt_mode=mode, grace_s=grace_s)
    config = {"PreemptType": kind, "SlurmctldParameters": parameters}
    assert check_preemption(config, partition).verdict == verdict


@pytest.mark.parametrize(
    ("value", "settings", "verdict"),
    [
        ("1", {}, "ok"),
        ("1", {"drop": ("requeue",)}, "ok"),
        ("0", {}, "warn"),
        ("0", {"drop": ("requeue",)}, "fail"),
        ("1", {"extra": {"no-requeue": ""}}, "fail"),
    ],
)
def test_jobs_must_be_allowed_back_into_the_queue(value: str, settings: dict, verdict: str) -> None:
    assert check_requeue({"JobRequeue": value}, ClusterProfile(**settings)).verdict == verdict


def test_a_site_without_arrays_fails() -> None:
    assert check_arrays({"MaxArraySize": "1001"}).verdict == "ok"
    assert check_arrays({"MaxArraySize": "0"}).verdict == "fail"


def test_a_site_that_kills_before_a_run_can_save_is_a_warning() -> None:
    assert check_kill_wait({"KillWait": "30 sec"}).verdict == "ok"
    assert check_kill_wait({"KillWait": "5 sec"}).verdict == "warn"


def test_a_site_that_may_lose_processes_is_a_warning() -> None:
    assert check_process_tracking({"ProctrackType": "proctrack/cgroup"}).verdict == "ok"
    assert check_process_tracking({"ProctrackType": "proctrack/pgid"}).verdict == "warn"


def test_a_site_without_accounts_is_a_warning() -> None:
    assert check_accounting(SITE).verdict == "ok"
    assert check_accounting(dataclasses.replace(SITE, has_accounts=False)).verdict == "warn"

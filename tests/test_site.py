"""slurm/doctor/site.py: what SLURM prints about itself, read."""

import pytest
from fake_slurm import FakeSlurm

from slurm.doctor.site import (
    NodeKind,
    Partition,
    ask_site,
    minutes,
    node_kind,
    read_config,
    read_partitions,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UNLIMITED", None),
        ("infinite", None),
        ("1-12:00:00", 2160),
        ("02:30:00", 150),
        ("30:00", 30),
        ("7-00:00:00", 10080),
    ],
)
def test_time_limits_are_read_in_minutes(text: str, expected: int | None) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("gres", "gpus", "kind"),
    [
        ("(null)", 0, ""),
        ("gpu:4", 4, ""),
        ("gpu:a100:4(S:0-1)", 4, "a100"),
        ("gpu:2080ti:8,nvme:1", 8, "2080ti"),
        ("craynetwork:4,gpu:a100_1g.5gb:7(S:0)", 7, "a100_1g.5gb"),
        ("gpu:t4:1,gpu:a100:2", 2, "a100"),
    ],
)
def test_gpus_of_a_node_are_read_from_its_gres(gres: str, gpus: int, kind: str) -> None:
    assert node_kind(3, "64+", "515000", gres) == NodeKind(3, 64, 502, gpus, kind)


def test_partitions_are_read_with_their_nodes() -> None:
    shown = (
        "PartitionName=gpu Default=YES GraceTime=60 MaxNodes=4 MaxTime=1-00:00:00 "
        "PreemptMode=REQUEUE State=UP\nPartitionName=old Default=NO GraceTime=0 MaxNodes=UNLIMITED "
        "MaxTime=UNLIMITED PreemptMode=OFF State=DOWN\n"
    )
    nodes = (
        "gpu|3|64|515000|gpu:a100:4|mix\ngpu|5|64|515000|gpu:a100:4|idle\n"
        "gpu|2|64|515000|gpu:a100:4|drain*\nold|1|16|64000|(null)|down*\n"
    )
    gpu, old = read_partitions(shown, nodes)
    assert gpu == Partition(
        "gpu", True, "UP", 1440, 4, "REQUEUE", 60, (NodeKind(8, 64, 502, 4, "a100"),), num_unusable=2
    )
    assert old == Partition("old", state="DOWN", num_unusable=1)
    assert gpu.num_nodes() == 4  # of 8, for a job may have no more


def test_a_cluster_without_partitions_has_none() -> None:
    assert read_partitions("No partitions in the system\n", "") == ()


def test_the_config_is_read_by_name() -> None:
    text = "Configuration data as of today\nKillWait                = 30 sec\nAuthInfo  = a=b,c=5\n"
    assert read_config(text) == {"KillWait": "30 sec", "AuthInfo": "a=b,c=5"}


def test_a_site_is_what_its_programs_say(fake_slurm: FakeSlurm) -> None:
    fake_slurm.account = "lab-x"
    site = ask_site()
    assert site is not None
    assert (site.config["ClusterName"], site.account, site.has_accounts) == ("fake", "lab-x", True)
    assert site.partition() == Partition("gpu", is_default=True, kinds=(NodeKind(2, 8, 15, 4, "fake"),))
    assert site.partition("gpu,other") == site.partition()
    assert site.partition("other") is None
    fake_slurm.accounts_off()
    site = ask_site()
    assert site is not None
    assert not site.has_accounts


def test_there_is_no_site_where_the_controller_or_a_program_is_missing(fake_slurm: FakeSlurm) -> None:
    fake_slurm.controller_down()
    assert ask_site() is None
    fake_slurm.controller_up()
    fake_slurm.uninstall("squeue")
    assert ask_site() is None

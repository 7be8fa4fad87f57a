"""Machines, partitions and sites as the doctor sees them, for its tests."""

import re
from pathlib import Path
from typing import Any

from devcluster import DevCluster

from slurm.doctor.probe import Probe
from slurm.doctor.probe_task import RankFacts
from slurm.doctor.site import NodeKind, Partition, Site
from slurm.plan import Resources

DEV_PROFILE = Path(__file__).parent / "devcluster.yaml"
SAME = {"python": "3.11.7", "torch": "2.15.0"}

A100 = NodeKind(count=8, cpus=64, mem_gb=503, gpus=4, gpu_type="a100")
V100 = NodeKind(count=2, cpus=40, mem_gb=187, gpus=2, gpu_type="v100")
PLAIN = NodeKind(count=100, cpus=48, mem_gb=187)
GPU = Partition("gpu", max_time_min=1440, kinds=(A100,))
MIXED = Partition("mixed", max_time_min=2880, kinds=(V100, A100))
CPU = Partition("cpu", is_default=True, max_time_min=180, kinds=(PLAIN,))
CONFIG = {"ClusterName": "alps", "SLURM_VERSION": "23.11.1", "SelectType": "select/cons_tres"}
SITE = Site(CONFIG, (CPU, GPU, MIXED), account="lab-x")

RUNS_DIR = Path("/data/runs")


def rank(number: int = 0, **facts: Any) -> RankFacts:
    """A rank on node n1, n2, ... that has found everything as it should be, but for these facts."""
    healthy: dict[str, Any] = {
        "token": "hello",
        "free_gb": 500.0,
        "versions": SAME,
        "may_requeue": True,
        "cpus_asked": 4,
        "cpus_usable": 4,
        "cpus_there": 64,
        "gpus_allocated": 1,
        "gpus_seen": 1,
        "gpu_name": "NVIDIA A100",
        "has_driver": True,
        "cuda": "12.8",
        "address": "10.0.0.1",
        "all_reduce_ms": {"gloo": 20.0, "NCCL": 1.0},
    }
    return RankFacts(number, f"n{number + 1}", **{**healthy, **facts})


def probe_of(*ranks: RankFacts, state: str = "COMPLETED", reason: str = "", log: str = "") -> Probe:
    """A probe of two ranks on two nodes that wrote the token `hello`."""
    return Probe("7", Resources(2, 2), state, reason, 12.0, "hello", ranks, log)


def rows(output: str) -> dict[str, tuple[str, str]]:
    """Verdict and what was seen, by check, as jobs/doctor.py prints it; the last of those with one name."""
    lines = re.findall(r"^(ok|warn|fail) +(\S+(?: \S+)*) {2,}(.*)$", output, re.M)
    return {name: (verdict, seen) for verdict, name, seen in lines}


def profile_with(folder: Path, line: str) -> str:
    """Path of the test cluster's profile with one line more."""
    path = folder / "site.yaml"
    path.write_text(DEV_PROFILE.read_text() + line + "\n")
    return str(path)


def no_trace(cluster: DevCluster, folder: Path) -> bool:
    """No job of the doctor is queued or running, and none of its files is left."""
    return ".doctor" not in cluster.run("squeue", "-h", "-o", "%j") and not list(folder.glob("runs/.doctor*"))

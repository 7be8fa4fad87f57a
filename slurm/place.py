"""Where this process stands in its job: its rank among the others, and how they find each other."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from data_prep.errors import ClusterError
from data_prep.files import write_json
from vae.study import read_json

Cluster = Literal["slurm", "local", "debug"]

# All ranks of a job start together; one that is this late has not been started, or sees another folder.
RENDEZVOUS_LIMIT_S = 300.0
POLL_S = 0.2
# Below Linux's ephemeral range, so that no outgoing connection takes the port before torch binds it.
PORTS = range(20_000, 32_000)

# Set by a scheduler or launcher around us, or to change what SLURM's programs say to a person; a job that
# inherits them, and an answer that is read here, would be wrong.
LEAKED = re.compile(
    r"(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SCANCEL|PMI|PMIX|OMPI|SUBMITIT|TORCHELASTIC|ACCELERATE)_.*"
    r"|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_ADDR|MASTER_PORT|GROUP_RANK|ROLE_RANK"
)
KEPT = ("SLURM_CONF",)  # without it, sbatch does not find a cluster whose file lies elsewhere


@dataclass(frozen=True)
class Place:
    """One process of a job: one per GPU."""

    cluster: Cluster
    job: str
    """Job id, with the array index if it has one: `123_4`."""
    restart: int
    """How often the scheduler has started this job again."""
    rank: int
    world_size: int
    local_rank: int
    num_nodes: int
    node: str
    cpus: int
    """CPU cores that this process may use."""

    @property
    def tag(self) -> str:
        """Names one attempt of one job."""
        return f"{self.job}-r{self.restart}"

    def as_attempt(self) -> dict[str, str | int | float]:
        """What provenance.json should know about this attempt."""
        nodes = os.environ.get("SLURM_JOB_NODELIST", "") if self.cluster == "slurm" else self.node
        attempt: dict[str, str | int | float] = {"cluster": self.cluster, "job": self.job}
        attempt |= {"restart": self.restart, "nodes": nodes, "cpus": self.cpus}
        if (gpus := os.environ.get("SLURM_GPUS_ON_NODE", "")).isdigit():
            attempt["gpus"] = int(gpus) * self.num_nodes
        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            attempt["visible_gpus"] = visible
        return attempt


def alone() -> Place:
    """The place of a process that is its whole job (`--cluster debug`)."""
    return Place("debug", f"debug-{os.getpid()}", 0, 0, 1, 0, 1, socket.gethostname(), num_cpus())


def find_place() -> Place:
    """This process's place, as SLURM's srun or submitit's local executor told it; else `alone()`."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        return _local_place()
    if "SLURM_PROCID" in os.environ:
        return _slurm_place()
    return alone()


def _slurm_place() -> Place:
    env = os.environ
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:  # the raw id of one element is also the id of the whole array
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return Place(
        cluster="slurm",
        job=job,
        restart=int(env.get("SLURM_RESTART_COUNT", "0")),
        rank=int(env["SLURM_PROCID"]),
        world_size=int(env.get("SLURM_STEP_NUM_TASKS") or env["SLURM_NTASKS"]),
        local_rank=int(env["SLURM_LOCALID"]),
        num_nodes=int(env.get("SLURM_STEP_NUM_NODES") or env["SLURM_JOB_NUM_NODES"]),
        node=env["SLURMD_NODENAME"],
        cpus=int(env.get("SLURM_CPUS_PER_TASK") or num_cpus()),
    )


def _local_place() -> Place:
    env, world_size = os.environ, int(os.environ["SUBMITIT_LOCAL_NTASKS"])
    rank = int(env["SUBMITIT_LOCAL_GLOBALID"])
    job = f"local-{env['SUBMITIT_LOCAL_JOB_ID']}"
    cpus = max(1, num_cpus() // world_size)
    return Place("local", job, 0, rank, world_size, rank, 1, socket.gethostname(), cpus)


# What provenance.json calls the times that SLURM tells, and what squeue calls them.
TIMES = {
    "submitted_s": "SubmitTime",
    "eligible_s": "EligibleTime",
    "allocated_s": "StartTime",
    "ends_s": "EndTime",
}


def times_of(place: Place) -> dict[str, float]:
    """When this job was submitted (or requeued), could have started, did, and must end; in Unix seconds.

    Empty where SLURM does not tell, as on nodes without its programs.
    """
    if place.cluster != "slurm":
        return {}
    form = ",".join(f"{name}:30" for name in TIMES.values())
    try:
        shown = subprocess.run(
            ["squeue", "--noheader", f"--jobs={place.job}", f"--Format={form}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        moments = [datetime.fromisoformat(word).timestamp() for word in shown.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):  # a time may be N/A
        return {}
    return dict(zip(TIMES, moments, strict=False))


def clean_environment() -> dict[str, str]:
    """This environment without what an outer job, a launcher or a shell start-up file left in it."""
    return {name: value for name, value in os.environ.items() if name in KEPT or not LEAKED.fullmatch(name)}


def num_cpus() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0))


@contextmanager
def joined(place: Place, folder: Path) -> Iterator[None]:
    """Set the variables by which torch and accelerate find the other ranks; `folder` must be shared.

    CUDA_VISIBLE_DEVICES stays as the scheduler set it: every rank sees all GPUs of its node, and accelerate
    picks the one numbered LOCAL_RANK.

    Raises:
        ClusterError: rank 0 could not be found.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(place.cpus))
    os.environ.setdefault("NCCL_DEBUG", "WARN")  # says what went wrong, and nothing else
    path = folder / f".rendezvous-{place.tag}.json"
    if place.world_size == 1:  # no process group, nobody to meet
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
        yield
        return
    meeting = publish_meeting(place, path) if place.rank == 0 else await_meeting(place, path)
    os.environ |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.world_size // place.num_nodes),
        "MASTER_ADDR": meeting[0],
        "MASTER_PORT": str(meeting[1]),
    }
    try:
        yield
    finally:
        if place.rank == 0:
            path.unlink(missing_ok=True)


def publish_meeting(place: Place, path: Path) -> tuple[str, int]:
    """Rank 0's part: write the address and port at which it will listen, and return them."""
    for left_behind in path.parent.glob(".rendezvous-*.json"):  # by an attempt that was killed
        left_behind.unlink(missing_ok=True)
    address, port = own_address(place), free_port()
    write_json(path, {"address": address, "port": port})
    return address, port


def await_meeting(place: Place, path: Path, limit_s: float = RENDEZVOUS_LIMIT_S) -> tuple[str, int]:
    """The other ranks' part: wait for rank 0's file of this very attempt, and resolve its address.

    Raises:
        ClusterError: the file did not come in time, or its address cannot be resolved from here.
    """
    give_up = time.monotonic() + limit_s
    while (meeting := read_json(path)) is None:
        if time.monotonic() > give_up:
            raise ClusterError(
                f"rank {place.rank} on {place.node} waited {limit_s:.0f} s in vain for rank 0's {path}",
                "is the runs folder shared by all nodes? did rank 0 start? see its log",
            )
        time.sleep(POLL_S)
    try:
        socket.getaddrinfo(meeting["address"], meeting["port"])
    except OSError as error:
        raise ClusterError(
            f"rank {place.rank} on {place.node} cannot resolve rank 0's address {meeting['address']}: {error}"
        ) from error
    return meeting["address"], meeting["port"]


def own_address(place: Place) -> str:
    """Address at which the other ranks of the job reach this process.

    Node names need not resolve; NodeAddr is what SLURM itself connects to.
    """
    if place.num_nodes == 1:
        return "127.0.0.1"
    try:
        shown = subprocess.run(
            ["scontrol", "show", "node", place.node], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        # srun ran on the job's first node, which is rank 0's; some sites have no scontrol there
        if address := os.environ.get("SLURM_LAUNCH_NODE_IPADDR"):
            return address
        raise ClusterError(f"the address of {place.node} is unknown: {error}") from error
    found = re.search(r"\bNodeAddr=(\S+)", shown.stdout)
    if found is None:
        raise ClusterError(f"scontrol shows no NodeAddr for {place.node}")
    return found[1]


def free_port() -> int:
    """A TCP port that nothing listens on."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise ClusterError(f"no free TCP port found in {PORTS.start}-{PORTS.stop - 1}")

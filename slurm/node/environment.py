"""The environment of one process of a job: rank, world size, job id, and the job's times in SLURM."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from data_prep.json_records import Word
from slurm import client
from vae.provenance import Attempt, this_attempt


class Backend(Word):
    """What starts the processes of a job."""

    SLURM = "slurm"
    LOCAL = "local"
    """Processes of this machine, one run after another."""
    DEBUG = "debug"
    """This very process."""


@dataclass(frozen=True)
class JobEnvironment:
    """One process of a job: one per GPU."""

    backend: Backend
    job: str
    """Job id, with the array index if it has one: `123_4`."""
    cpus: int
    """CPU cores that this process may use."""
    restart: int = 0
    """How often the scheduler has started this job again."""
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    num_nodes: int = 1
    node: str = field(default_factory=socket.gethostname)

    @property
    def tag(self) -> str:
        """Names one attempt of one job."""
        return f"{self.job}-r{self.restart}"

    def as_attempt(self, times: Mapping[str, float]) -> Attempt:
        """What provenance.json should know about this attempt, which begins now; `times` from `times_of`."""
        gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
        return this_attempt(
            cluster=str(self.backend),
            job=self.job,
            restart=self.restart,
            nodes=os.environ.get("SLURM_JOB_NODELIST", "") if self.backend is Backend.SLURM else self.node,
            cpus=self.cpus,
            gpus=int(gpus) * self.num_nodes if gpus.isdigit() else None,
            visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            **times,
        )


def single_process() -> JobEnvironment:
    """The environment of a process that is its whole job (`--cluster debug`)."""
    return JobEnvironment(Backend.DEBUG, f"debug-{os.getpid()}", num_cpus())


def find_job_environment() -> JobEnvironment:
    """This process's environment, from SLURM's srun or submitit's local executor; else `single_process()`."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        return _local_environment()
    if "SLURM_PROCID" in os.environ:
        return _slurm_environment()
    return single_process()


def _slurm_environment() -> JobEnvironment:
    env = os.environ
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:  # the raw id of one array task is also the id of the whole array
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return JobEnvironment(
        backend=Backend.SLURM,
        job=job,
        restart=int(env.get("SLURM_RESTART_COUNT", "0")),
        rank=int(env["SLURM_PROCID"]),
        world_size=int(env.get("SLURM_STEP_NUM_TASKS") or env["SLURM_NTASKS"]),
        local_rank=int(env["SLURM_LOCALID"]),
        num_nodes=int(env.get("SLURM_STEP_NUM_NODES") or env["SLURM_JOB_NUM_NODES"]),
        node=env["SLURMD_NODENAME"],
        cpus=int(env.get("SLURM_CPUS_PER_TASK") or num_cpus()),
    )


def _local_environment() -> JobEnvironment:
    world_size, rank = int(os.environ["SUBMITIT_LOCAL_NTASKS"]), int(os.environ["SUBMITIT_LOCAL_GLOBALID"])
    job, cpus = f"local-{os.environ['SUBMITIT_LOCAL_JOB_ID']}", max(1, num_cpus() // world_size)
    return JobEnvironment(Backend.LOCAL, job, cpus, rank=rank, world_size=world_size, local_rank=rank)


# What provenance.json calls the times of a job, and what squeue calls them.
TIMES = {
    "submitted_s": "SubmitTime",
    "eligible_s": "EligibleTime",
    "allocated_s": "StartTime",
    "ends_s": "EndTime",
}


def times_of(job_env: JobEnvironment) -> dict[str, float]:
    """When this job was submitted, could have started, did, must end; Unix seconds, {} without squeue."""
    if job_env.backend is not Backend.SLURM or job_env.rank > 0:
        return {}
    try:
        words = client.job_times(job_env.job, list(TIMES.values()))
        moments = [datetime.fromisoformat(word).timestamp() for word in words]
    except ValueError:  # a time may be N/A
        return {}
    return dict(zip(TIMES, moments, strict=False))


def num_cpus() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0))

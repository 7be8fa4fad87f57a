"""Jobs as the toolkit records them, and their processes as they find themselves on a node."""

import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tiny import child_environment

from slurm.client import EndedJob, QueuedJob
from slurm.job_records import JobRecord
from slurm.job_states import Scheduler
from slurm.node.environment import Backend, JobEnvironment
from slurm.node.task import JobKind

# Two runs that are trained by array 8 and scored by array 9, and one that is trained on this machine.
TRAIN = JobRecord("8", JobKind.TRAIN, Backend.SLURM, is_array=True, indices=(0, 1), host="login")
EVALUATE = JobRecord("9", JobKind.EVALUATE, Backend.SLURM, is_array=True, indices=(0, 1), host="login")
LOCAL = JobRecord("41", JobKind.TRAIN, Backend.LOCAL, is_array=False, indices=(0,), host="here")


def seen(
    queue: Mapping[str, tuple[str, ...]] | None = None, ended: Mapping[str, str] | None = None
) -> Scheduler:
    """A look at SLURM: state, reason and needs of each queued job, and the state of each ended one."""
    return Scheduler(
        None if queue is None else {job: queued_job(job, *words) for job, words in queue.items()},
        None if ended is None else {job: EndedJob(job, state, "", "0:0") for job, state in ended.items()},
    )


def queued_job(job: str, state: str, reason: str = "None", needs: str = "(null)") -> QueuedJob:
    """A job as squeue shows it."""
    return QueuedJob(job, state, "", reason, "N/A", needs)


def job_env(**changes: Any) -> JobEnvironment:
    """Rank 0 of two, on one node, of SLURM's job 5; but for `changes`."""
    rank0 = JobEnvironment(Backend.SLURM, job="5", cpus=1, world_size=2, node="n1")
    return replace(rank0, **changes)


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: handlers and fork hooks cannot be taken back."""
    setup = "import os, signal, subprocess, sys, time\nfrom slurm_jobs import job_env\n"
    setup += "from slurm.node.signals import *\nfrom slurm.node.requeue import *\n"
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(code)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )
    return done

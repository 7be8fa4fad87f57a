"""Jobs as the toolkit records them, and their processes as they find themselves on a node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slurm.job_records import JobRecord
from slurm.node.environment import Backend, JobEnvironment
from slurm.node.task import JobKind

# Two runs that are trained by array 8 and scored by array 9, and one that is trained on this machine.
TRAIN = JobRecord("8", JobKind.TRAIN, Backend.SLURM, is_array=True, indices=(0, 1), host="login")
EVALUATE = JobRecord("9", JobKind.EVALUATE, Backend.SLURM, is_array=True, indices=(0, 1), host="login")
LOCAL = JobRecord("41", JobKind.TRAIN, Backend.LOCAL, is_array=False, indices=(0,), host="here")


def job_env(**changes: Any) -> JobEnvironment:
    """Rank 0 of two, on one node, of SLURM's job 5; but for `changes`."""
    rank0 = JobEnvironment(Backend.SLURM, job="5", cpus=1, world_size=2, node="n1")
    return replace(rank0, **changes)

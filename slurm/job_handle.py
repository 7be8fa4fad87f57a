"""One submitted job, on SLURM or on this machine: what it is called, its log files, its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from slurm import client, local
from slurm.job_records import JobRecord, note_end
from slurm.node.environment import Backend


class JobHandle(Protocol):
    """What differs between jobs by what runs them; `index` is the position of a run in its study."""

    is_local: ClassVar[bool]
    log_ending: ClassVar[str]
    """How the names of files with what its ranks have printed end, after `<job>_<rank>`."""

    def state_here(self) -> str | None:
        """RUNNING, GONE, or ended on purpose: CANCELLED, INTERRUPTED; None if SLURM has to be asked."""

    def label(self, index: int | None = None) -> str:
        """What people know it by: `job 8`, with an index `job 8_1`, or `process 4711`."""

    def log_tag(self, index: int) -> str:
        """What the names of a run's log files call it."""

    def end(self, study_dir: Path, indices: Sequence[int], is_all: bool) -> None:
        """End these of its runs; with `is_all` the whole job and what would follow it."""


@dataclass(frozen=True)
class SlurmJob(JobHandle):
    """A job or an array of SLURM."""

    record: JobRecord
    is_local = False
    log_ending = ".log"

    def state_here(self) -> None:
        return None

    def label(self, index: int | None = None) -> str:
        return f"job {self.record.id if index is None else self.record.array_task(index)}"

    def log_tag(self, index: int) -> str:
        return self.record.array_task(index)

    def end(self, study_dir: Path, indices: Sequence[int], is_all: bool) -> None:
        client.cancel(*([self.record.id] if is_all else map(self.record.array_task, indices)))


@dataclass(frozen=True)
class LocalJob(JobHandle):
    """Processes of this machine; the id is that of the one which controls them."""

    record: JobRecord
    is_local = True
    log_ending = local.LOG_ENDING

    def state_here(self) -> str:
        return "RUNNING" if local.is_running_here(self.record) else self.record.end.upper() or "GONE"

    def label(self, index: int | None = None) -> str:
        return f"process {self.record.id}"

    def log_tag(self, index: int) -> str:
        return f"local-{self.record.id}"

    def end(self, study_dir: Path, indices: Sequence[int], is_all: bool) -> None:
        note_end(study_dir, self.record.id, "cancelled")
        local.end_job(int(self.record.id), with_launcher=is_all)


def handle_of(record: JobRecord) -> JobHandle:
    """The job of a record, by what runs it."""
    return LocalJob(record) if record.cluster is Backend.LOCAL else SlurmJob(record)

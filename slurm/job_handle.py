"""One submitted job, on SLURM or on this machine: what it is called, its log files, its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import ClusterError
from slurm import client, local
from slurm.job_records import JobRecord, note_end
from slurm.job_states import GONE, JobState, Scheduler
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from vae.run_dir import JOBS_FILE


@dataclass(frozen=True)
class SlurmJob:
    """A job or an array of SLURM; `index` is the position of one of its runs in the study."""

    record: JobRecord
    is_local = False
    log_ending = ".log"
    """How the names of files with what its ranks have printed end, after `<job>_<rank>`."""

    def state(self, index: int, scheduler: Scheduler) -> JobState:
        """What it is doing; a local job that was ended on purpose is CANCELLED or INTERRUPTED."""
        return scheduler.state(self.record, index)

    def is_live(self, index: int, scheduler: Scheduler) -> bool:
        """Whether it is queued or running."""
        return self.record.array_task(index) in (scheduler.queue or {})

    def id_to_wait_for(self, index: int, scheduler: Scheduler) -> str:
        """Its id if it is queued or running and may still start, else empty. Raises as `live_job`."""
        if scheduler.queue is None:
            hint = f"try again later; if that SLURM is gone for good, remove the study's {JOBS_FILE}"
            raise ClusterError(f"squeue does not answer, so {self.label()} may still be running", hint)
        array_task = self.record.array_task(index)
        can_start = self.is_live(index, scheduler) and not scheduler.can_never_start(array_task)
        return array_task if can_start else ""

    def label(self, index: int | None = None) -> str:
        """What people know it by: `job 8`, with an index `job 8_1`, or `process 4711`."""
        return f"job {self.record.id if index is None else self.record.array_task(index)}"

    def log_tag(self, index: int) -> str:
        """What the names of a run's log files call it."""
        return self.record.array_task(index)

    def end(self, study_dir: Path, indices: Sequence[int], is_all: bool) -> None:
        """End these of its runs; with `is_all` the whole job and what would follow it."""
        client.cancel(*([self.record.id] if is_all else map(self.record.array_task, indices)))


@dataclass(frozen=True)
class LocalJob:
    """Processes of this machine, asked the same; the id is that of the one which controls them."""

    record: JobRecord
    is_local = True
    log_ending = local.LOG_ENDING

    def state(self, index: int, scheduler: Scheduler) -> JobState:
        return JobState("RUNNING" if self.is_live(index, scheduler) else self.record.end.upper() or GONE)

    def is_live(self, index: int, scheduler: Scheduler) -> bool:
        return local.is_running_here(self.record)

    def id_to_wait_for(self, index: int, scheduler: Scheduler) -> str:
        if self.is_live(index, scheduler):
            hint = "wait for it, or end it, then launch again"
            raise ClusterError(f"{self.label()} is at work on this study", hint)
        return ""

    def label(self, index: int | None = None) -> str:
        return f"process {self.record.id}"

    def log_tag(self, index: int) -> str:
        return f"local-{self.record.id}"

    def end(self, study_dir: Path, indices: Sequence[int], is_all: bool) -> None:
        note_end(study_dir, self.record.id, "cancelled")
        local.end_job(int(self.record.id), with_launcher=is_all)


JobHandle = SlurmJob | LocalJob


def handle_of(record: JobRecord) -> JobHandle:
    """The job of a record, by what runs it."""
    return LocalJob(record) if record.cluster is Backend.LOCAL else SlurmJob(record)


def newest_job(kind: JobKind, index: int, records: list[JobRecord], scheduler: Scheduler) -> JobRecord | None:
    """The live job of that kind for one run, else the newest; None without any."""
    jobs = [record for record in reversed(records) if record.kind == kind and index in record.indices]
    live = (record for record in jobs if handle_of(record).state(index, scheduler).is_live)
    return next(live, jobs[0] if jobs else None)


def live_job(kind: JobKind, index: int, records: list[JobRecord], scheduler: Scheduler) -> str:
    """Id of the live job of that kind for one run, or empty; ClusterError if nobody knows or can wait."""
    jobs = [record for record in reversed(records) if record.kind == kind and index in record.indices]
    return next(filter(None, (handle_of(job).id_to_wait_for(index, scheduler) for job in jobs)), "")

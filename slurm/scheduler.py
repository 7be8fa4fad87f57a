"""One look at squeue and sacct, and what they say of this toolkit's jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from data_prep.errors import ClusterError
from slurm import client
from slurm.client import EndedJob, QueuedJob
from slurm.job_records import JobRecord
from slurm.local import is_running_here
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from vae.run_dir import JOBS_FILE

# What a job cannot start without, in SLURM's `aftercorr:8_*(unfulfilled),afterok:9(failed)`.
NEEDS = re.compile(r"(afterok|aftercorr):(\d+)")


@dataclass(frozen=True)
class Scheduler:
    """One look at the queue and the accounts."""

    queue: dict[str, tuple[str, str]] | None
    """State and reason of each queued or running job of ours by id; None if squeue did not answer."""
    ended: dict[str, str] | None
    """State of each job that sacct knows; None if sacct did not answer."""
    starts: dict[str, str] = field(default_factory=dict)
    """When SLURM means to start each pending job, as in `2026-01-31T16:45:00`; `N/A` where it has no plan."""
    needs: dict[str, str] = field(default_factory=dict)
    """What each pending job depends on, as in `aftercorr:8_*(unfulfilled)`."""
    exits: dict[str, str] = field(default_factory=dict)
    """Exit code and signal of each job that sacct knows, as in `1:0`."""

    def can_never_start(self, element: str) -> bool:
        """Whether a job is pending for ever, because what it waits for has failed."""
        return (self.queue or {}).get(element, ("", ""))[1] == "DependencyNeverSatisfied"

    def never_satisfiable(self) -> set[str]:
        """Jobs that are pending for ever: what they need has failed, or is itself pending for ever."""
        dead = {job for job in self.queue or {} if self.can_never_start(job)}
        while more := {job for job in self.needs if job not in dead and any(self._needed(job, dead))}:
            dead |= more
        return dead

    def in_transition(self) -> set[str]:
        """Jobs that still wait for one that has left the queue: SLURM has yet to look at them."""
        queue = self.queue or {}
        waiting = {job for job, (_, reason) in queue.items() if reason == "Dependency"}
        return {job for job in waiting & self.needs.keys() if not all(self._needed(job, queue.keys()))}

    def _needed(self, job: str, among: Set[str]) -> list[Set[str]]:
        """For each job that one can only start after: which of these it is, element by element."""
        needed: list[Set[str]] = []
        for condition, parent in NEEDS.findall(self.needs[job]):
            if condition == "aftercorr":
                needed.append(among & {parent, f"{parent}_{job.partition('_')[2]}"})
            else:
                needed.append({one for one in among if one.partition("_")[0] == parent})
        return needed

    def state(self, record: JobRecord, index: int) -> tuple[str, str]:
        """(state, reason) of one element: SLURM's state, GONE (ended, nobody knows how) or UNKNOWN.

        A local job that was ended on purpose is CANCELLED or INTERRUPTED.
        """
        if record.cluster is Backend.LOCAL:
            return ("RUNNING" if is_running_here(record) else record.end.upper() or "GONE"), ""
        element = record.array_task(index)
        if self.queue is None:
            return "UNKNOWN", "squeue does not answer"
        if element in self.queue:
            state, reason = self.queue[element]
            return state, "" if reason == "None" or state in RUNNING else reason  # held: if it is requeued
        if self.ended is None:
            return "GONE", "sacct does not answer"
        if self.ended.get(element) in RUNNING + QUEUED:  # squeue knows better
            return "GONE", "not yet in the accounts"
        if element in self.ended:
            return self.ended[element], ""
        if record.is_array and record.id in self.ended:  # for a moment after the end, the id lacks its index
            return "GONE", "not yet in the accounts"
        # an element cancelled while it was pending leaves no trace of its own, only of its array
        has_parent = any(job.split("_")[0] == record.id for job in self.ended)
        return ("CANCELLED", "before it started") if has_parent else ("GONE", "not in the accounts")


def ask_scheduler(records: Iterable[JobRecord], with_accounts: bool = True) -> Scheduler:
    """Ask squeue, and sacct if wanted, about the SLURM jobs among `records`, once each."""
    ours = [record for record in records if record.cluster is Backend.SLURM]
    if not ours:
        return Scheduler({}, {})
    ids = sorted({record.id for record in ours})
    return scheduler_of(ours, client.queue(), client.accounts(ids) if with_accounts else None)


def scheduler_of(
    records: Iterable[JobRecord],
    queue: Iterable[QueuedJob] | None,
    ended: Iterable[EndedJob] | None = None,
) -> Scheduler:
    """What squeue and sacct say of the jobs in `records`; None for one that did not answer."""
    names = {record.id: record.name for record in records if record.name}

    def is_ours(job: QueuedJob | EndedJob) -> bool:
        """SLURM may give an id of ours again to something else, under another name."""
        return names.get(job.id.partition("_")[0], job.name) == job.name

    queued = [job for job in queue or () if is_ours(job)]
    past = [job for job in ended or () if is_ours(job)]
    return Scheduler(
        None if queue is None else {job.id: (job.state, job.reason) for job in queued},
        None if ended is None else {job.id: job.state for job in past},
        starts={job.id: job.start for job in queued},
        needs={job.id: job.needs for job in queued},
        exits={job.id: job.exit for job in past},
    )


RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT")
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")


def newest_job(kind: JobKind, index: int, records: list[JobRecord], scheduler: Scheduler) -> JobRecord | None:
    """The live job of that kind for one run, else the newest; None without any."""
    found = [record for record in reversed(records) if record.kind == kind and index in record.indices]
    live = (record for record in found if scheduler.state(record, index)[0] in RUNNING + QUEUED)
    return next(live, found[0] if found else None)


def live_job(kind: JobKind, index: int, records: list[JobRecord], scheduler: Scheduler) -> str:
    """Id of the queued or running job of that kind for one run; empty if there is none.

    Raises:
        ClusterError: SLURM does not answer, so nobody knows.
    """
    for record in reversed(records):
        if record.kind != kind or index not in record.indices:
            continue
        if record.cluster is Backend.LOCAL:
            if is_running_here(record):
                raise ClusterError(
                    f"process {record.id} is at work on this study",
                    "wait for it, or end it, then launch again",
                )
            continue
        if scheduler.queue is None:
            raise ClusterError(
                f"squeue does not answer, so job {record.id} may still be running",
                f"try again later; if that SLURM is gone for good, remove the study's {JOBS_FILE}",
            )
        element = record.array_task(index)
        if element in scheduler.queue and not scheduler.can_never_start(element):
            return element
    return ""

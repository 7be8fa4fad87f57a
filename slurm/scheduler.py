"""One look at squeue and sacct, and what they say of this toolkit's jobs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from data_prep.errors import ClusterError
from slurm import client
from slurm.client import EndedJob, QueuedJob, QueueWatch
from slurm.job_records import JobRecord
from slurm.local import is_running_here
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from vae.run_dir import JOBS_FILE

# SLURM's words for the states of a job that is on its nodes, and of one that waits for them.
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT")
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")
# ... and ours: it ended and nobody knows how, squeue does not answer, somebody ended a local job on purpose.
GONE, UNKNOWN, CANCELLED, INTERRUPTED = "GONE", "UNKNOWN", "CANCELLED", "INTERRUPTED"

# What a job cannot start without, in SLURM's `aftercorr:8_*(unfulfilled),afterok:9(failed)`.
NEEDS = re.compile(r"(afterok|aftercorr):(\d+)")
# So often sacct is asked about a job that has left the queue: accounts lag behind, but not for ever.
MAX_ACCOUNT_LOOKS = 3


class JobState(NamedTuple):
    """What a job, or one task of an array, is doing."""

    state: str
    """In SLURM's words or ours, see above."""
    reason: str = ""
    """Why it is pending, in SLURM's words, or why nobody knows."""

    @property
    def is_running(self) -> bool:
        return self.state in RUNNING

    @property
    def is_queued(self) -> bool:
        return self.state in QUEUED

    @property
    def is_live(self) -> bool:
        return self.is_running or self.is_queued


@dataclass(frozen=True)
class Scheduler:
    """One look at the queue and the accounts."""

    queue: dict[str, JobState] | None
    """Each queued or running job of ours by id; None if squeue did not answer."""
    ended: dict[str, str] | None
    """State of each job that sacct knows; None if sacct did not answer."""
    starts: dict[str, str] = field(default_factory=dict)
    """When SLURM means to start each pending job, as in `2026-01-31T16:45:00`; `N/A` where it has no plan."""
    needs: dict[str, str] = field(default_factory=dict)
    """What each pending job depends on, as in `aftercorr:8_*(unfulfilled)`."""
    exits: dict[str, str] = field(default_factory=dict)
    """Exit code and signal of each job that sacct knows, as in `1:0`."""

    def can_never_start(self, array_task: str) -> bool:
        """Whether a job is pending for ever, because what it waits for has failed."""
        job = (self.queue or {}).get(array_task)
        return job is not None and job[1] == "DependencyNeverSatisfied"

    def never_satisfiable(self) -> set[str]:
        """Jobs that are pending for ever: what they need has failed, or is itself pending for ever."""
        dead = {job for job in self.queue or {} if self.can_never_start(job)}
        alive = self.needs.keys() - dead
        while more := {job for job in alive if any(parent & dead for parent in self._parents(job))}:
            dead |= more
            alive -= more
        return dead

    def in_transition(self) -> set[str]:
        """Jobs that still wait for one that has left the queue: SLURM has yet to look at them."""
        waiting = {job for job, (_, reason) in (self.queue or {}).items() if reason == "Dependency"}
        return {job for job in waiting & self.needs.keys() if not all(self._parents(job))}

    def _parents(self, job: str) -> list[Set[str]]:
        """For each job that one can only start after: what of it is in the queue."""
        parents: list[Set[str]] = []
        for condition, parent in NEEDS.findall(self.needs[job]):
            tasks = self._queued_tasks.get(parent, set())
            if condition == "aftercorr":
                tasks = tasks & {parent, f"{parent}_{job.partition('_')[2]}"}
            parents.append(tasks)
        return parents

    @cached_property
    def _queued_tasks(self) -> dict[str, set[str]]:
        """The array tasks in the queue by the id of their array."""
        tasks: dict[str, set[str]] = {}
        for job in self.queue or {}:
            tasks.setdefault(job.partition("_")[0], set()).add(job)
        return tasks

    @cached_property
    def _ended_arrays(self) -> set[str]:
        """The ids of the arrays and jobs that sacct knows anything of."""
        return {job.partition("_")[0] for job in self.ended or {}}

    def state(self, record: JobRecord, index: int) -> JobState:
        """What the array task for one run is doing."""
        if record.cluster is Backend.LOCAL:
            return JobState("RUNNING" if is_running_here(record) else record.end.upper() or GONE)
        if self.queue is None:
            return JobState(UNKNOWN, "squeue does not answer")
        array_task = record.array_task(index)
        if array_task in self.queue:
            state, reason = self.queue[array_task]
            is_reason = reason != "None" and state not in RUNNING  # what runs may be held, if it is requeued
            return JobState(state, reason if is_reason else "")
        return self._ended_state(record, array_task)

    def _ended_state(self, record: JobRecord, array_task: str) -> JobState:
        """How an array task ended that squeue does not show."""
        if self.ended is None:
            return JobState(GONE, "sacct does not answer")
        state = self.ended.get(array_task)
        # squeue knows better; and for a moment after the end, the id lacks its index
        if state in RUNNING + QUEUED or (state is None and record.is_array and record.id in self.ended):
            return JobState(GONE, "not yet in the accounts")
        if state is not None:
            return JobState(state)
        # one that was cancelled while it was pending leaves no trace of its own, only of its array
        if record.id in self._ended_arrays:
            return JobState(CANCELLED, "before it started")
        return JobState(GONE, "not in the accounts")


# --- looking -------------------------------------------------------------------------------------

Look = Callable[[Iterable[JobRecord]], Scheduler]


def ask_scheduler(records: Iterable[JobRecord], with_accounts: bool = True) -> Scheduler:
    """Ask squeue, and sacct if wanted, about the SLURM jobs among `records`, once each."""
    ours = on_slurm(records)
    if not ours:
        return Scheduler({}, {})
    ids = sorted({record.id for record in ours})
    return scheduler_of(ours, client.queue(), client.accounts(ids) if with_accounts else None)


def on_slurm(records: Iterable[JobRecord]) -> list[JobRecord]:
    """SLURM's jobs among these."""
    return [record for record in records if record.cluster is Backend.SLURM]


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
        None if queue is None else {job.id: JobState(job.state, job.reason) for job in queued},
        None if ended is None else {job.id: job.state for job in past},
        starts={job.id: job.start for job in queued},
        needs={job.id: job.needs for job in queued},
        exits={job.id: job.exit for job in past},
    )


class SchedulerWatch:
    """The scheduler for those who look again and again.

    squeue is asked as seldom as its `QueueWatch` wants, and when there are new jobs; sacct only about what
    has left the queue, MAX_ACCOUNT_LOOKS times at most.
    """

    def __init__(self, queue: QueueWatch | None = None) -> None:
        self.queue = queue or QueueWatch()
        self._jobs: set[str] = set()
        self._ended: dict[str, EndedJob] = {}
        self._num_looks: Counter[str] = Counter()
        self._has_accounts = False

    def look(self, records: Iterable[JobRecord]) -> Scheduler:
        """The SLURM jobs among `records` as they are, or were a moment ago."""
        ours = on_slurm(records)
        if not ours:
            return Scheduler({}, {})
        ids = {record.id for record in ours}
        if not ids <= self._jobs:
            self.queue.expire()  # what squeue said was said before they were submitted
        self._jobs |= ids
        queue = self.queue.look()
        if queue is not None:
            self._ask_accounts(ours, {job.id for job in queue})
        return scheduler_of(ours, queue, self._ended.values() if self._has_accounts else None)

    def _ask_accounts(self, records: Iterable[JobRecord], queued: Set[str]) -> None:
        """Ask sacct about the array tasks whose end it has not told yet."""
        for job in queued:  # what it said of this one was about an earlier start
            self._ended.pop(job, None)
            self._num_looks.pop(job, None)
        over = {job for job, row in self._ended.items() if row.state not in RUNNING + QUEUED}
        gone = set(chain.from_iterable(record.array_tasks for record in records)) - queued
        missing = [job for job in gone - over if self._num_looks[job] < MAX_ACCOUNT_LOOKS]
        if missing:
            self._num_looks.update(missing)
            rows = client.accounts(sorted({job.partition("_")[0] for job in missing}))
            self._has_accounts = self._has_accounts or rows is not None
            self._ended |= {row.id: row for row in rows or ()}


# --- one job -------------------------------------------------------------------------------------


def newest_job(kind: JobKind, index: int, records: list[JobRecord], scheduler: Scheduler) -> JobRecord | None:
    """The live job of that kind for one run, else the newest; None without any."""
    jobs = [record for record in reversed(records) if record.kind == kind and index in record.indices]
    live = (record for record in jobs if scheduler.state(record, index).is_live)
    return next(live, jobs[0] if jobs else None)


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
        array_task = record.array_task(index)
        if array_task in scheduler.queue and not scheduler.can_never_start(array_task):
            return array_task
    return ""

"""One look at squeue and sacct, and what they say of this toolkit's jobs."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from slurm import client
from slurm.client import EndedJob, QueuedJob, QueueWatch
from slurm.job_records import JobRecord
from slurm.node.environment import Backend

# SLURM's words for the states of a job that is on its nodes, and of one that waits for them.
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT")
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")
# ... and ours: it ended and nobody knows how, squeue does not answer, somebody ended a local job on purpose.
GONE, UNKNOWN, CANCELLED, INTERRUPTED = "GONE", "UNKNOWN", "CANCELLED", "INTERRUPTED"

# What a job cannot start without, in SLURM's `aftercorr:8_*(unfulfilled),afterok:9(failed)`.
NEEDS = re.compile(r"(afterok|aftercorr):(\d+)")
# So often sacct is asked about a job that has left the queue: accounts lag behind, but not for ever.
MAX_ACCOUNT_LOOKS = 3


def array_of(job: str) -> str:
    """The id of the array that `8_1` belongs to, or of the job."""
    return job.partition("_")[0]


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

    queue: dict[str, QueuedJob] | None
    """Each queued or running job of ours by id; None if squeue did not answer."""
    ended: dict[str, EndedJob] | None
    """Each job that sacct knows; None if sacct did not answer."""

    def can_never_start(self, array_task: str) -> bool:
        """Whether a job is pending for ever, because what it waits for has failed."""
        job = (self.queue or {}).get(array_task)
        return job is not None and job.reason == "DependencyNeverSatisfied"

    def never_satisfiable(self) -> set[str]:
        """Jobs that are pending for ever: what they need has failed, or is itself pending for ever."""
        dead = {job for job in self.queue or {} if self.can_never_start(job)}
        alive = (self.queue or {}).keys() - dead
        while more := {job for job in alive if any(parent & dead for parent in self._parents(job))}:
            dead |= more
            alive -= more
        return dead

    def in_transition(self) -> set[str]:
        """Jobs that still wait for one that has left the queue: SLURM has yet to look at them."""
        waiting = {id for id, job in (self.queue or {}).items() if job.reason == "Dependency"}
        return {job for job in waiting if not all(self._parents(job))}

    def _parents(self, job: str) -> list[Set[str]]:
        """For each job that this one can only start after: what of it is in the queue."""
        parents: list[Set[str]] = []
        for condition, parent in NEEDS.findall((self.queue or {})[job].needs):
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
            tasks.setdefault(array_of(job), set()).add(job)
        return tasks

    @cached_property
    def _ended_arrays(self) -> set[str]:
        """The ids of the arrays and jobs that sacct knows anything of."""
        return set(map(array_of, self.ended or {}))

    def state(self, record: JobRecord, index: int) -> JobState:
        """What SLURM's array task for one run is doing."""
        if self.queue is None:
            return JobState(UNKNOWN, "squeue does not answer")
        array_task = record.array_task(index)
        if job := self.queue.get(array_task):
            is_reason = job.reason != "None" and job.state not in RUNNING  # else it is held if it is requeued
            return JobState(job.state, job.reason if is_reason else "")
        if self.ended is None:
            return JobState(GONE, "sacct does not answer")
        row = self.ended.get(array_task)
        # squeue knows better than accounts that lag behind; right after the end, the id lacks its index
        if row.state in RUNNING + QUEUED if row else record.is_array and record.id in self.ended:
            return JobState(GONE, "not yet in the accounts")
        if row:
            return JobState(row.state)
        # one that was cancelled while it was pending leaves no trace of its own, only of its array
        if record.id in self._ended_arrays:
            return JobState(CANCELLED, "before it started")
        return JobState(GONE, "not in the accounts")


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


def array_tasks_of(records: Iterable[JobRecord]) -> set[str]:
    """The ids of all array tasks of SLURM's jobs among these."""
    return set(chain.from_iterable(map(record.array_task, record.indices) for record in on_slurm(records)))


def scheduler_of(
    records: Iterable[JobRecord], queue: Iterable[QueuedJob] | None, ended: Iterable[EndedJob] | None = None
) -> Scheduler:
    """What squeue and sacct say of SLURM's jobs among `records`; None for one that did not answer."""
    names = {record.id: record.name for record in on_slurm(records) if record.name}

    def is_ours(job: QueuedJob | EndedJob) -> bool:
        """SLURM may give an id of ours again to something else, under another name."""
        return names.get(array_of(job.id), job.name) == job.name

    return Scheduler(
        None if queue is None else {job.id: job for job in queue if is_ours(job)},
        None if ended is None else {job.id: job for job in ended if is_ours(job)},
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
        gone = array_tasks_of(records) - queued
        missing = [job for job in gone - over if self._num_looks[job] < MAX_ACCOUNT_LOOKS]
        if missing:
            self._num_looks.update(missing)
            rows = client.accounts(sorted(set(map(array_of, missing))))
            self._has_accounts = self._has_accounts or rows is not None
            self._ended |= {row.id: row for row in rows or ()}

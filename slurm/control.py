"""Changes what is queued or running of a study: cancel, hold, release, and how many runs train at once."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import ClusterError
from slurm import client
from slurm.client import QueueWatch
from slurm.job_handle import JobHandle, handle_of
from slurm.job_records import JobRecord, read_jobs
from slurm.node.task import JobKind
from slurm.plan import shares
from slurm.scheduler import RUNNING, Scheduler, array_tasks_of, ask_scheduler, on_slurm, scheduler_of
from vae.study import Study

log = logging.getLogger(__name__)

# SLURM kills what has not ended by itself after KillWait, half a minute at most sites.
SLURM_END_S = 120.0
# Those that wait come first: a report that waits for the end of a scoring would start when that is cancelled.
LAST_FIRST = (JobKind.REPORT, JobKind.EVALUATE, JobKind.TRAIN)
# A line names so many runs at most.
MAX_NAMED = 6


@dataclass(frozen=True)
class LiveJob:
    """A job of a study of which something is queued or running."""

    record: JobRecord
    handle: JobHandle
    indices: list[int]
    """The runs that it is still to work on, by position in the study."""

    def describe(self, study: Study, indices: Sequence[int] = ()) -> str:
        """Its kind, and its runs or those at `indices`; of the report, the study."""
        if self.record.kind is JobKind.REPORT:
            return f"{self.record.kind} of the study"
        runs = [study.runs[index] for index in indices or self.indices]
        if len(runs) > MAX_NAMED:
            runs = [*runs[: MAX_NAMED - 1], f"... ({len(runs)} runs)"]
        return f"{self.record.kind} {', '.join(runs)}"


def live_jobs(records: list[JobRecord], scheduler: Scheduler, run: int | None = None) -> list[LiveJob]:
    """The jobs that are queued or running, oldest first; those that work on one run if it is given.

    Raises:
        ClusterError: SLURM does not answer, and nothing may be changed blindly.
    """
    if scheduler.queue is None:
        raise ClusterError(
            "squeue does not answer, so nobody knows what is queued or running", "try again later"
        )
    jobs = []
    for record in records:
        handle = handle_of(record)
        indices = [index for index in record.indices if run in (None, index)]
        live = [index for index in indices if handle.is_live(index, scheduler)]
        if live:
            jobs.append(LiveJob(record, handle, live))
    return jobs


# --- cancel, and wait for the end ----------------------------------------------------------------


def cancel(study_dir: Path, study: Study, run: str = "") -> list[str]:
    """Cancel what is queued or running of a study, or of one run; returns one line for each job.

    A running training is asked to end and saves. Packing goes on: other studies may want the images.

    Raises:
        ClusterError: SLURM does not answer, or will not cancel.
    """
    kinds = LAST_FIRST[1:] if run else LAST_FIRST  # the report tells of the other runs too
    records = [record for record in read_jobs(study_dir, study) if record.kind in kinds]
    scheduler = ask_scheduler(records, with_accounts=False)
    jobs = live_jobs(records, scheduler, study.runs.index(run) if run else None)
    jobs.sort(key=lambda job: LAST_FIRST.index(job.record.kind))
    lines, ended = [], set[str]()
    for job in jobs:
        job.handle.end(study_dir, job.indices, is_all=not run)
        ended |= {job.record.array_task(index) for index in job.indices}
        label = job.handle.label(job.indices[0] if run else None)
        lines.append(f"cancelled: {job.describe(study)} ({label})")
    wait_for_end(records, ended, QueueWatch())  # a training saves first
    return lines


def cancel_unsatisfiable(records: list[JobRecord], watch: QueueWatch) -> list[str]:
    """Cancel what waits for a job that has failed, where SLURM does not do so itself; returns the ids."""
    never_satisfiable = look(records, watch).never_satisfiable()
    dead = sorted(never_satisfiable.intersection(array_tasks_of(records)))
    if dead:
        client.cancel(*dead)
        watch.expire()
        wait_for_end(records, dead, watch)
    return dead


def wait_until_settled(records: list[JobRecord], watch: QueueWatch) -> None:
    """Return when SLURM has made up its mind about these jobs, or after SLURM_END_S.

    Nobody knows yet whether one that is just ending will run again, nor whether one that waits for what has
    ended may start.
    """
    open_cases = unsettled(records, look(records, watch))
    if open_cases:
        log.info("waiting for SLURM to settle jobs that are just ending: %s", ", ".join(open_cases))
        wait_until(lambda scheduler: not unsettled(records, scheduler), records, watch)


def unsettled(records: list[JobRecord], scheduler: Scheduler) -> list[str]:
    """The array tasks of which SLURM has yet to say what becomes of them."""
    completing = {id for id, job in (scheduler.queue or {}).items() if job.state == "COMPLETING"}
    open_cases = completing | scheduler.in_transition()
    return [array_task for array_task in array_tasks_of(records) if array_task in open_cases]


def wait_for_end(records: list[JobRecord], array_tasks: Iterable[str], watch: QueueWatch) -> None:
    """Return when these have left the queue, or after SLURM_END_S: a launch would take them for alive."""
    left = set(array_tasks).intersection(array_tasks_of(records))
    if left:
        wait_until(lambda scheduler: left.isdisjoint(scheduler.queue or {}), records, watch)


def wait_until(is_over: Callable[[Scheduler], bool], records: list[JobRecord], watch: QueueWatch) -> None:
    """Return when `is_over` says so of the queue, or after SLURM_END_S."""
    give_up_s = watch.clock() + SLURM_END_S
    while not is_over(look(records, watch)) and watch.clock() < give_up_s:
        watch.wait()


def look(records: list[JobRecord], watch: QueueWatch) -> Scheduler:
    """What the queue says of SLURM's jobs among these."""
    return scheduler_of(on_slurm(records), watch.look())


# --- hold, release, throttle ---------------------------------------------------------------------


def hold(study_dir: Path, study: Study) -> list[str]:
    """Let no more runs of a study start; returns one line for each job.

    Raises:
        ClusterError: SLURM does not answer or will not do it, or the study runs on this machine.
    """
    jobs, scheduler = throttled_jobs(study_dir, study)
    lines = []
    for job in jobs:
        client.hold(job.record.id)  # by its owner, so that the owner may release it
        running = [index for index in job.indices if job.handle.state(index, scheduler)[0] in RUNNING]
        held = [index for index in job.indices if index not in running]
        if held:
            lines.append(f"held: {job.describe(study, held)} ({job.handle.label()})")
        if running:
            lines.append(f"goes on: {job.describe(study, running)}, held if it is requeued")
    return lines


def release(study_dir: Path, study: Study) -> list[str]:
    """Take back a hold; returns one line for each job. Raises as `hold`."""
    jobs, _ = throttled_jobs(study_dir, study)
    for job in jobs:
        client.release(job.record.id)
    return [f"released: {job.describe(study)} ({job.handle.label()})" for job in jobs]


def set_throttle(study_dir: Path, study: Study, count: int) -> list[str]:
    """Let at most `count` runs train (and be scored) at once; returns one line for each array.

    Several arrays of one kind share it. Raises as `hold`.
    """
    if count < 1:
        raise ClusterError(f"{count} runs at once", "give 1 or more, or hold")
    jobs, _ = throttled_jobs(study_dir, study)
    arrays = [job.record for job in jobs if job.record.is_array]
    num_arrays = collections.Counter(array.kind for array in arrays)
    shares_left = {kind: iter(shares(count, number)) for kind, number in num_arrays.items()}
    lines = []
    for array in arrays:
        share = next(shares_left[array.kind])
        client.set_array_throttle(array.id, share)
        lines.append(f"at most {share} at once: {array.kind} (job {array.id})")
    return lines


def throttled_jobs(study_dir: Path, study: Study) -> tuple[list[LiveJob], Scheduler]:
    """The live jobs that train or score, and the queue as it is. Raises as `hold`."""
    records = [record for record in read_jobs(study_dir, study) if record.kind in LAST_FIRST[1:]]
    scheduler = ask_scheduler(records, with_accounts=False)
    jobs = live_jobs(records, scheduler)
    if any(job.handle.is_local for job in jobs):
        raise ClusterError("this study runs on this machine, one run after another", "end it with Ctrl-C")
    return jobs, scheduler

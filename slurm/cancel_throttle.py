"""Changes what is queued or running of a study: cancel, hold, release, and how many runs train at once."""

import logging
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from data_prep.errors import ClusterError
from slurm import client
from slurm.client import QueueWatch
from slurm.job_handle import handle_of
from slurm.job_records import JobRecord, read_jobs
from slurm.job_states import (
    CANCELLED,
    QUEUED,
    RUNNING,
    Scheduler,
    array_tasks_of,
    ask_scheduler,
    on_slurm,
    scheduler_of,
)
from slurm.node.task import JobKind
from slurm.plan import shares
from vae.study import Study

log = logging.getLogger(__name__)

# SLURM kills what has not ended by itself after KillWait, half a minute at most sites.
SLURM_END_S = 120.0
# Those that wait come first: a report that waits for the end of a scoring would start when that is cancelled.
LAST_FIRST = (JobKind.REPORT, JobKind.EVALUATE, JobKind.TRAIN)
# A line names so many runs at most.
MAX_NAMED = 6


def live_jobs(
    records: list[JobRecord], scheduler: Scheduler, run: int | None = None
) -> dict[JobRecord, list[int]]:
    """Live jobs, oldest first, with the runs (or that at `run`) each is still to do; or ClusterError."""
    if scheduler.queue is None:
        unknown = "squeue does not answer, so nobody knows what is queued or running"
        raise ClusterError(unknown, "try again later")
    live = {}
    for record in records:
        indices = [index for index in record.indices if run in (None, index)]
        live[record] = [index for index in indices if handle_of(record).is_live(index, scheduler)]
    return {record: indices for record, indices in live.items() if indices}


def describe(record: JobRecord, indices: Sequence[int], study: Study) -> str:
    """The kind of a job and the runs at `indices`; of the report, the study."""
    if record.kind is JobKind.REPORT:
        return f"{record.kind} of the study"
    runs = [study.runs[index] for index in indices]
    if len(runs) > MAX_NAMED:
        runs = [*runs[: MAX_NAMED - 1], f"... ({len(runs)} runs)"]
    return f"{record.kind} {', '.join(runs)}"


def cancel(study_dir: Path, study: Study, run: str = "") -> dict[str, bool]:
    """Cancel what is queued or running of a study, or of one run; a line on each job, and whether it is over.

    A running training is asked to end and saves; it is called cancelled when SLURM calls it so. Packing goes
    on: other studies may want the images. Raises ClusterError if SLURM does not answer, or will not cancel.
    """
    kinds = LAST_FIRST[1:] if run else LAST_FIRST  # the report tells of the other runs too
    records = [record for record in read_jobs(study_dir, study) if record.kind in kinds]
    scheduler = ask_scheduler(records, with_accounts=False)
    live = live_jobs(records, scheduler, study.runs.index(run) if run else None)
    in_order = sorted(live, key=lambda record: LAST_FIRST.index(record.kind))
    for record in in_order:
        handle_of(record).end(study_dir, live[record], is_all=not run)
    array_tasks = set(chain.from_iterable(map(record.array_task, live[record]) for record in in_order))
    wait_for_end(records, array_tasks, QueueWatch())  # a training saves first
    # say what has become of them
    seen = scheduler_of(records, client.remembered() if on_slurm(live) else ())
    lines = {}
    for record in in_order:
        ends = {index: end_of(record, index, seen) for index in live[record]}
        for end in dict.fromkeys(ends.values()):
            indices = [index for index in ends if ends[index] == end]
            is_part = bool(run) or len(indices) < len(ends)
            label = handle_of(record).label(indices[0] if is_part else None)
            lines[f"{end}: {describe(record, indices, study)} ({label})"] = not end.startswith("still")
    return lines


def end_of(record: JobRecord, index: int, remembered: Scheduler) -> str:
    """What has become of a run's job that was to be cancelled; `remembered` has what ended lately, too."""
    if remembered.queue is None:
        return "still unknown, for squeue does not answer any more"
    job = remembered.queue.get(record.array_task(index))
    if job is None or job.state == CANCELLED:  # of what never began, SLURM may remember nothing
        return "cancelled"
    return f"still {job.state}" if job.state in RUNNING + QUEUED else f"ended before that ({job.state})"


def settle(records: list[JobRecord]) -> None:
    """Have no job left of which SLURM has yet to say what becomes of it, and none that can never start."""
    if not on_slurm(records):
        return
    watch = QueueWatch()
    if open_cases := unsettled(records, scheduler_of(records, watch.look())):
        log.info("waiting for SLURM to settle jobs that are just ending: %s", ", ".join(open_cases))
        wait_until(lambda scheduler: not unsettled(records, scheduler), records, watch)
    # SLURM itself does not cancel everywhere what waits for a job that has failed
    if dead := sorted(array_tasks_of(records) & scheduler_of(records, watch.look()).never_satisfiable()):
        client.cancel(*dead)
        watch.expire()
        wait_for_end(records, set(dead), watch)
        log.info("cancelled, for what they waited for has failed: %s", ", ".join(dead))


def unsettled(records: list[JobRecord], scheduler: Scheduler) -> list[str]:
    """The array tasks of which SLURM has yet to say whether they run again, or may start."""
    completing = {job for job, state in (scheduler.queue or {}).items() if state.state == "COMPLETING"}
    return sorted(array_tasks_of(records) & (completing | scheduler.in_transition()))


def wait_for_end(records: list[JobRecord], array_tasks: set[str], watch: QueueWatch) -> None:
    """Return when these have left the queue, or after SLURM_END_S; cancels again what comes back."""
    ours = array_tasks & array_tasks_of(records)

    def are_gone(scheduler: Scheduler) -> bool:
        queue = scheduler.queue or {}
        if back := sorted(job for job in ours & queue.keys() if queue[job].state != "COMPLETING"):
            client.cancel(*back)
        return scheduler.queue is not None and ours.isdisjoint(queue)

    if ours:
        wait_until(are_gone, records, watch)


def wait_until(is_over: Callable[[Scheduler], bool], records: list[JobRecord], watch: QueueWatch) -> None:
    """Return when `is_over` says so of the queue, or after SLURM_END_S."""
    give_up_s = watch.clock() + SLURM_END_S
    while not is_over(scheduler_of(records, watch.look())) and watch.clock() < give_up_s:
        watch.wait()


def hold(study_dir: Path, study: Study) -> list[str]:
    """Let no more runs of a study start; returns one line for each job. Raises as `throttled_jobs`."""
    live, scheduler = throttled_jobs(study_dir, study)
    lines = []
    for record, indices in live.items():
        client.hold(record.id)  # by its owner, so that the owner may release it
        running = [index for index in indices if handle_of(record).state(index, scheduler).is_running]
        held = [index for index in indices if index not in running]
        if held:
            lines.append(f"held: {describe(record, held, study)} (job {record.id})")
        if running:
            lines.append(f"goes on: {describe(record, running, study)}, held if it is requeued")
    return lines


def release(study_dir: Path, study: Study) -> list[str]:
    """Take back a hold; returns one line for each job. Raises as `throttled_jobs`."""
    live, _ = throttled_jobs(study_dir, study)
    lines = []
    for record, indices in live.items():
        client.release(record.id)
        lines.append(f"released: {describe(record, indices, study)} (job {record.id})")
    return lines


def set_throttle(study_dir: Path, study: Study, count: int) -> list[str]:
    """Let at most `count` runs train (and be scored) at once; one line for each array. Raises as `hold`."""
    if count < 1:
        raise ClusterError(f"{count} runs at once", "give 1 or more, or hold")
    live, _ = throttled_jobs(study_dir, study)
    arrays = [record for record in live if record.is_array]
    lines = []
    for array, share in zip(arrays, shares(count, [array.kind for array in arrays]), strict=True):
        client.set_array_throttle(array.id, share)
        lines.append(f"at most {share} at once: {array.kind} (job {array.id})")
    return lines


def throttled_jobs(study_dir: Path, study: Study) -> tuple[dict[JobRecord, list[int]], Scheduler]:
    """The live jobs that train or score, and the queue; ClusterError without SLURM, or for local jobs."""
    records = [record for record in read_jobs(study_dir, study) if record.kind in LAST_FIRST[1:]]
    scheduler = ask_scheduler(records, with_accounts=False)
    live = live_jobs(records, scheduler)
    if any(handle_of(record).is_local for record in live):
        raise ClusterError("this study runs on this machine, one run after another", "end it with Ctrl-C")
    return live, scheduler

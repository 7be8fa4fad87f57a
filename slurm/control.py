"""Changes what is queued or running of a study: cancel, hold, release, and how many runs train at once."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from data_prep.errors import ClusterError
from slurm import client
from slurm.job_records import JobRecord, note_end, read_jobs
from slurm.local import end_local, is_running_here, ticks
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from slurm.plan import shares
from slurm.scheduler import RUNNING, Scheduler, ask_scheduler
from vae.study import Study

log = logging.getLogger(__name__)
# A local process saves when it is asked to end; longer than the launcher itself waits for it.
LOCAL_END_S = 70.0
# SLURM kills what has not ended by itself after KillWait, half a minute at most sites.
SLURM_END_S = 120.0

# Those that wait come first: a report that waits for the end of a scoring would start when that is cancelled.
LAST_FIRST = (JobKind.REPORT, JobKind.EVALUATE, JobKind.TRAIN)

Asked = int | Literal["hold", "release"]


def cancel(study_dir: Path, study: Study, run: str = "") -> list[str]:
    """Cancel what is queued or running of a study, or of one run; returns one line for each job.

    A running training is asked to end and saves. Packing goes on: other studies may want the images.

    Raises:
        ClusterError: SLURM does not answer, or will not cancel.
    """
    records = read_jobs(study_dir, study)
    scheduler = require_queue(records)
    said, ended = [], list[str]()
    for kind in LAST_FIRST:
        for record in [record for record in records if record.kind == kind]:
            if run and kind is JobKind.REPORT:  # it tells of the other runs too
                continue
            wanted = [study.runs.index(run)] if run else record.indices
            live = [
                index for index in record.indices if index in wanted and is_live(record, index, scheduler)
            ]
            if live:
                if record.cluster is Backend.LOCAL:
                    note_end(study_dir, record.id, "cancelled")
                end(record, live, is_all=not run)
                ended += [record.array_task(index) for index in live if record.cluster is Backend.SLURM]
                said.append(f"cancelled: {kind} {names(record, live, study)} ({told(record, live, run)})")
    wait_for_end(records, ended)  # a training saves first
    return said


def cancel_unsatisfiable(records: list[JobRecord]) -> list[str]:
    """Cancel what waits for a job that has failed, where SLURM does not do so itself; returns the ids."""
    never_satisfiable = ask_scheduler(records, with_accounts=False).never_satisfiable()
    dead = sorted(never_satisfiable.intersection(array_tasks_of(records)))
    if dead:
        client.cancel(*dead)
        wait_for_end(records, dead)
    return dead


def wait_until_settled(records: list[JobRecord]) -> None:
    """Return when SLURM has made up its mind about these jobs, or after SLURM_END_S.

    Nobody knows yet whether one that is just ending will run again, nor whether one that waits for what has
    ended may start.
    """
    told = False
    for _ in ticks(time.monotonic() + SLURM_END_S):
        scheduler = ask_scheduler(records, with_accounts=False)
        queue, in_transition = scheduler.queue or {}, scheduler.in_transition()
        open_cases = [
            one
            for one in array_tasks_of(records)
            if queue.get(one, ("",))[0] == "COMPLETING" or one in in_transition
        ]
        if not open_cases:
            return
        if not told:
            log.info("waiting for SLURM to settle jobs that are just ending: %s", ", ".join(open_cases))
        told = True


def array_tasks_of(records: Iterable[JobRecord]) -> list[str]:
    """The ids of all elements of SLURM's jobs."""
    return [r.array_task(index) for r in records if r.cluster is Backend.SLURM for index in r.indices]


def wait_for_end(records: list[JobRecord], ended: Iterable[str]) -> None:
    """Return when these jobs have left the queue, or after SLURM_END_S.

    A launch that still sees one in the queue takes it for alive.
    """
    left = set(ended)
    for _ in ticks(time.monotonic() + SLURM_END_S):
        left &= (ask_scheduler(records, with_accounts=False).queue or {}).keys()
        if not left:
            return


def end(record: JobRecord, live: list[int], is_all: bool) -> None:
    """End one job: an array at once, elements one by one, a local launch together with its process."""
    if record.cluster is Backend.LOCAL:
        end_local(int(record.id), with_launcher=is_all)
    elif is_all:
        client.cancel(record.id)
    else:
        client.cancel(*(record.array_task(index) for index in live))


def told(record: JobRecord, live: list[int], run: str) -> str:
    """The id by which a job, or its only element meant, is known."""
    if record.cluster is Backend.LOCAL:
        return f"process {record.id}"
    return f"job {record.array_task(live[0]) if run else record.id}"


def throttle(study_dir: Path, study: Study, asked: Asked) -> list[str]:
    """Hold, release, or set how many runs may train (and be scored) at once; returns one line for each array.

    Raises:
        ClusterError: SLURM does not answer or will not do it, or the study runs on this machine.
    """
    if isinstance(asked, int) and asked < 1:
        raise ClusterError(f"{asked} runs at once", "give 1 or more, or hold")
    records = [record for record in read_jobs(study_dir, study) if record.kind in LAST_FIRST[1:]]
    scheduler = require_queue(records)
    alive = {
        record: live
        for record in records
        if (live := [index for index in record.indices if is_live(record, index, scheduler)])
    }
    arrays = collections.Counter(record.kind for record in alive if record.is_array)
    caps = {kind: shares(asked, count) for kind, count in arrays.items()} if isinstance(asked, int) else {}
    said = []
    for record, live in alive.items():
        if record.cluster is Backend.LOCAL:
            raise ClusterError("this study runs on this machine, one run after another", "end it with Ctrl-C")
        if asked == "hold":
            client.hold(record.id)  # by its owner, so that the owner may release it
            runs_on = [index for index in live if scheduler.state(record, index)[0] in RUNNING]
            held = [index for index in live if index not in runs_on]
            said += [f"held: {record.kind} {names(record, held, study)} (job {record.id})"] if held else []
            if runs_on:
                said.append(f"goes on: {record.kind} {names(record, runs_on, study)}, held if it is requeued")
        elif asked == "release":
            client.release(record.id)
            said.append(f"released: {record.kind} {names(record, live, study)} (job {record.id})")
        elif record.is_array:
            cap = caps[record.kind].pop(0)  # several arrays of one kind share what was asked for
            client.set_array_throttle(record.id, cap)
            said.append(f"at most {cap} at once: {record.kind} (job {record.id})")
    return said


def require_queue(records: list[JobRecord]) -> Scheduler:
    """The queue, which must be known before anything is changed.

    Raises:
        ClusterError: SLURM does not answer.
    """
    scheduler = ask_scheduler(records, with_accounts=False)
    if scheduler.queue is None:
        raise ClusterError(
            "squeue does not answer, so nobody knows what is queued or running", "try again later"
        )
    return scheduler


def is_live(record: JobRecord, index: int, scheduler: Scheduler) -> bool:
    """Whether one element is queued or running."""
    if record.cluster is Backend.LOCAL:
        return is_running_here(record)
    return record.array_task(index) in (scheduler.queue or {})


def names(record: JobRecord, indices: Iterable[int], study: Study) -> str:
    """The runs a job works on; of the report, the study."""
    if record.kind is JobKind.REPORT:
        return "of the study"
    runs = [study.runs[index] for index in indices]
    return ", ".join(runs) if len(runs) <= 6 else f"{', '.join(runs[:5])}, ... ({len(runs)} runs)"

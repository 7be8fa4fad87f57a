"""Changes what is queued or running of a study: cancel, hold, release, and how many runs train at once."""

from __future__ import annotations

import collections
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from data_prep.errors import ClusterError
from slurm.place import clean_environment
from slurm.request import shares
from slurm.state import RUNNING, JobRecord, Scheduler, ask_scheduler, is_running_here, note_end, read_jobs
from vae.study import Study

log = logging.getLogger(__name__)

COMMAND_LIMIT_S = 60
# A local process saves when it is asked to end; longer than the launcher itself waits for it.
LOCAL_END_S = 70.0
# SLURM kills what has not ended by itself after KillWait, half a minute at most sites.
SLURM_END_S = 120.0

# Those that wait come first: a report that waits for the end of a scoring would start when that is cancelled.
LAST_FIRST = ("report", "evaluate", "train")

# A job that has ended since squeue was asked is no failure.
OVER = re.compile("already (finished|completing|completed)|Invalid job id|No error", re.IGNORECASE)

Asked = int | Literal["hold", "release"]


def cancel(study_dir: Path, study: Study, run: str = "") -> list[str]:
    """Cancel what is queued or running of a study, or of one run; returns one line for each job.

    A running training is asked to end and saves. Packing goes on: other studies may want the images.

    Raises:
        ClusterError: SLURM does not answer, or will not cancel.
    """
    records = read_jobs(study_dir, study)
    scheduler = known_queue(records)
    said, ended = [], list[str]()
    for kind in LAST_FIRST:
        for record in [record for record in records if record.kind == kind]:
            if run and kind == "report":  # it tells of the other runs too
                continue
            wanted = [study.runs.index(run)] if run else record.indices
            live = [
                index for index in record.indices if index in wanted and is_live(record, index, scheduler)
            ]
            if live:
                if record.cluster == "local":
                    note_end(study_dir, record.id, "cancelled")
                end(record, live, is_all=not run)
                ended += [record.element(index) for index in live if record.cluster == "slurm"]
                said.append(f"cancelled: {kind} {names(record, live, study)} ({told(record, live, run)})")
    await_end(records, ended)  # a training saves first
    return said


def clear_away(records: list[JobRecord]) -> list[str]:
    """Cancel what waits for a job that has failed, where SLURM does not do so itself; returns the ids."""
    hopeless = ask_scheduler(records, with_accounts=False).hopeless()
    dead = sorted(hopeless.intersection(elements_of(records)))
    if dead:
        ask("scancel", "--quiet", *dead)
        await_end(records, dead)
    return dead


def await_verdict(records: list[JobRecord]) -> None:
    """Return when SLURM has made up its mind about these jobs, or after SLURM_END_S.

    Nobody knows yet whether one that is just ending will run again, nor whether one that waits for what has
    ended may start.
    """
    told = False
    for _ in ticks(time.monotonic() + SLURM_END_S):
        scheduler = ask_scheduler(records, with_accounts=False)
        queue, undecided = scheduler.queue or {}, scheduler.undecided()
        open_cases = [
            one
            for one in elements_of(records)
            if queue.get(one, ("",))[0] == "COMPLETING" or one in undecided
        ]
        if not open_cases:
            return
        if not told:
            log.info("waiting for SLURM to settle jobs that are just ending: %s", ", ".join(open_cases))
        told = True


def elements_of(records: Iterable[JobRecord]) -> list[str]:
    """The ids of all elements of SLURM's jobs."""
    return [r.element(index) for r in records if r.cluster == "slurm" for index in r.indices]


def await_end(records: list[JobRecord], ended: Iterable[str]) -> None:
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
    if record.cluster == "local":
        end_local(int(record.id), with_launcher=is_all)
    elif is_all:
        ask("scancel", "--quiet", record.id)
    else:
        ask("scancel", "--quiet", *(record.element(index) for index in live))


def told(record: JobRecord, live: list[int], run: str) -> str:
    """The id by which a job, or its only element meant, is known."""
    if record.cluster == "local":
        return f"process {record.id}"
    return f"job {record.element(live[0]) if run else record.id}"


def throttle(study_dir: Path, study: Study, asked: Asked) -> list[str]:
    """Hold, release, or set how many runs may train (and be scored) at once; returns one line for each array.

    Raises:
        ClusterError: SLURM does not answer or will not do it, or the study runs on this machine.
    """
    if isinstance(asked, int) and asked < 1:
        raise ClusterError(f"{asked} runs at once", "give 1 or more, or hold")
    records = [record for record in read_jobs(study_dir, study) if record.kind in LAST_FIRST[1:]]
    scheduler = known_queue(records)
    alive = {
        record: live
        for record in records
        if (live := [index for index in record.indices if is_live(record, index, scheduler)])
    }
    arrays = collections.Counter(record.kind for record in alive if record.is_array)
    caps = {kind: shares(asked, count) for kind, count in arrays.items()} if isinstance(asked, int) else {}
    said = []
    for record, live in alive.items():
        if record.cluster == "local":
            raise ClusterError("this study runs on this machine, one run after another", "end it with Ctrl-C")
        if asked == "hold":
            ask("scontrol", "uhold", record.id)  # by its owner, so that the owner may release it
            runs_on = [index for index in live if scheduler.state(record, index)[0] in RUNNING]
            held = [index for index in live if index not in runs_on]
            said += [f"held: {record.kind} {names(record, held, study)} (job {record.id})"] if held else []
            if runs_on:
                said.append(f"goes on: {record.kind} {names(record, runs_on, study)}, held if it is requeued")
        elif asked == "release":
            ask("scontrol", "release", record.id)
            said.append(f"released: {record.kind} {names(record, live, study)} (job {record.id})")
        elif record.is_array:
            cap = caps[record.kind].pop(0)  # several arrays of one kind share what was asked for
            ask("scontrol", "update", f"JobId={record.id}", f"ArrayTaskThrottle={cap}")
            said.append(f"at most {cap} at once: {record.kind} (job {record.id})")
    return said


def known_queue(records: list[JobRecord]) -> Scheduler:
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
    if record.cluster == "local":
        return is_running_here(record)
    return record.element(index) in (scheduler.queue or {})


def names(record: JobRecord, indices: Iterable[int], study: Study) -> str:
    """The runs a job works on; of the report, the study."""
    if record.kind == "report":
        return "of the study"
    runs = [study.runs[index] for index in indices]
    return ", ".join(runs) if len(runs) <= 6 else f"{', '.join(runs[:5])}, ... ({len(runs)} runs)"


def ask(*command: str) -> None:
    """Have SLURM do something; it is no failure that a job has ended in the meantime.

    Raises:
        ClusterError: SLURM's own words on why not.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, env=clean_environment()
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ClusterError(f"{command[0]} could not be asked: {error}", "try again later") from error
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    if done.returncode and not (lines and all(OVER.search(line) for line in lines)):
        raise ClusterError(f"SLURM refused `{' '.join(command)}`: {' '.join(' '.join(lines).split())}")


# --- this machine --------------------------------------------------------------------------------


def end_local(pid: int, with_launcher: bool) -> None:
    """Ask a local job's process to save and end, and wait for that; with its launcher, nothing follows it.

    Asked again and again: processes that are just starting miss it.

    Raises:
        ClusterError: it does not end.
    """
    launcher = launcher_of(pid) if with_launcher else None
    if launcher is not None:
        with suppress(ProcessLookupError):
            os.kill(launcher, signal.SIGTERM)  # ends its job as Ctrl-C does
    give_up = time.monotonic() + LOCAL_END_S
    for _ in ticks(give_up):
        if launcher is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not any(map(is_alive, (pid, launcher))):
            return
    raise ClusterError(f"process {pid} does not end", f"kill -9 {pid}")


def ticks(give_up: float) -> Iterator[None]:
    """One step a second until `give_up`, in the time of the monotonic clock."""
    while time.monotonic() < give_up:
        yield
        time.sleep(1)


def is_alive(pid: int | None) -> bool:
    """Whether a process exists and is no zombie."""
    return pid is not None and (words := stat_of(pid)) is not None and words[0] != "Z"


def launcher_of(pid: int) -> int | None:
    """The `jobs/launch.py` that started a local job; None if it is gone."""
    words = stat_of(pid)
    if words is None:
        return None
    with suppress(OSError):
        if b"launch.py" in Path(f"/proc/{words[1]}/cmdline").read_bytes():
            return int(words[1])
    return None


def stat_of(pid: int) -> list[str] | None:
    """State, parent, ... of a process, from /proc; None without it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None

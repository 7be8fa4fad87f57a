"""Gathers the facts about a run for `explain`: from our files, squeue, sacct and the job's logs."""

import os
import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from itertools import chain
from pathlib import Path

from data_prep.errors import DamagedFile, SettingsError, ToolkitError
from data_prep.manifest import MANIFEST_FILE, read_manifest
from slurm.diagnose.case import Case
from slurm.diagnose.explain import is_settled
from slurm.diagnose.known_causes import DISK_FULL, find_cause
from slurm.diagnose.log_files import (
    from_error_on,
    job_logs,
    last_error,
    last_lines,
    last_notice,
    shorten,
)
from slurm.job_handle import handle_of, newest_job
from slurm.job_records import JobRecord, read_jobs, read_records
from slurm.job_states import UNKNOWN, Look, Scheduler, ask_scheduler
from slurm.node.task import JobKind
from vae.digests import LAUNCH_AGAIN, find_losses
from vae.events import StopSignalled, read_events
from vae.metrics import read_progress
from vae.provenance import read_attempts
from vae.run_dir import LOGS_DIR, METRICS_FILE, read_done, saved_step
from vae.study import Study, is_scored, is_trained, read_run

# A disk with less than this takes no log any more.
FULL_BYTES = 1 << 20


def gather(study_dir: Path, study: Study, names: Iterable[str], look: Look = ask_scheduler) -> list[Case]:
    """The cases of the runs `names`, in that order, by one `look` at SLURM."""
    records = read_jobs(study_dir, study)
    data_dirs = {name: data_of(study_dir / name) for name in names}
    packing = {data: read_records(data) for data in set(data_dirs.values()) if data is not None}
    scheduler = look([*records, *chain.from_iterable(packing.values())])
    # runs that are not trained may lack their images, or wait for them to be packed
    shards: dict[Path | None, str] = {data: what_is_wrong_with(data) for data in packing}
    packers: dict[Path | None, str] = {data: packing_job(packing[data], scheduler) for data in packing}
    # a local job works on all runs, one after another
    local = [record for record in records if handle_of(record).is_local]
    busy = next((record.id for record in local if handle_of(record).is_live(0, scheduler)), "")
    relative = os.path.relpath(study_dir)  # as one would type it here
    folder = shlex.quote(str(study_dir) if relative.startswith("..") else relative)
    cases = [
        Case(name, folder, busy=busy, shards=shards.get(data, ""), waits_for=packers.get(data, ""))
        for name, data in data_dirs.items()
    ]
    return [with_facts(case, study_dir / case.run, study, records, scheduler) for case in cases]


def with_facts(case: Case, run_dir: Path, study: Study, jobs: list[JobRecord], scheduler: Scheduler) -> Case:
    """With the facts about one run itself; of a damaged one only that it is."""
    try:
        case, losses = from_files(case, run_dir, study), find_losses(run_dir, read_done(run_dir))
    except DamagedFile as error:
        return Case(case.run, case.study, damage=str(error), fix=error.hint or "")
    index = study.runs.index(case.run)
    record = newest_job(case.kind, index, jobs, scheduler)
    if record is not None and not case.is_done:
        case = with_job(case, run_dir, index, record, scheduler)
    loss = losses.weights or losses.scores
    return replace(case, damage=loss, fix=LAUNCH_AGAIN) if loss and is_settled(case) else case


def from_files(case: Case, run_dir: Path, study: Study) -> Case:
    """With what the run's own files say; DamagedFile if one is not what this toolkit has written."""
    has_begun = (run_dir / METRICS_FILE).exists() or (run_dir / LOGS_DIR).is_dir()
    if is_trained(run_dir):
        is_done = is_scored(run_dir, study)
        return replace(case, kind=JobKind.EVALUATE, was_started=has_begun, is_done=is_done)
    stops = [event.step for event in read_events(run_dir) if isinstance(event, StopSignalled)]
    now = read_progress(run_dir)
    return replace(
        case,
        was_started=has_begun,
        progress=f" at step {now.step:,} of {now.total_steps:,}" if now.total_steps else "",
        saved=max([saved_step(run_dir), *stops]),
        jobs=tuple(attempt.job for attempt in read_attempts(run_dir)),
    )


def with_job(case: Case, run_dir: Path, index: int, record: JobRecord, scheduler: Scheduler) -> Case:
    """With what SLURM and the logs say of the newest job."""
    job, handle = record.array_task(index), handle_of(record)
    state = handle.state(index, scheduler)
    queued, ended = (scheduler.queue or {}).get(job), (scheduler.ended or {}).get(job)
    case = replace(
        case,
        job=job,
        is_local=handle.is_local,
        state=state.state,
        reason=state.reason,
        start=clock(queued.start) if queued else "",
        exit=ended.exit if ended else "",
        waits_for=case.waits_for or (needed(queued.needs) if queued else ""),
    )
    is_over = not state.is_live and state.state != UNKNOWN
    return with_logs(case, run_dir, index, record) if is_over else case


def with_logs(case: Case, run_dir: Path, index: int, record: JobRecord) -> Case:
    """With what the logs of a job that is over say of its end."""
    logs = job_logs(run_dir, index, record)
    # what Python says last is what ended it; else the cause may stand anywhere
    error = last_error(logs)
    known = find_cause(from_error_on(logs) or chain.from_iterable(logs))
    if not (known or error) and shutil.disk_usage(run_dir.parent).free < FULL_BYTES:
        known = DISK_FULL, f"{run_dir.parent} has no space left"  # nobody could write that down
    return replace(
        case,
        error=error,
        notice=last_notice(run_dir.parent, record, index),
        cause=f"{known[0].cause}{case.progress}: {shorten(known[1])}" if known else "",
        fix=known[0].step if known else "",
        log_end=last_lines(logs),
    )


def clock(time: str, now: datetime | None = None) -> str:
    """SLURM's `2026-01-31T16:45:00` as `16:45`, with the date if that is not today; else nothing."""
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:  # N/A, Unknown
        return ""
    is_today = moment.date() == (now or datetime.now()).date()
    return f"{moment:%H:%M}" if is_today else f"{moment:%Y-%m-%d %H:%M}"


def needed(dependency: str) -> str:
    """The jobs in SLURM's `aftercorr:8_*(unfulfilled),afterok:9`, as `job 8, job 9`."""
    ids = dict.fromkeys(re.findall(r"\d+(?:_\d+)?", dependency))
    return ", ".join(f"job {job}" for job in ids)


def packing_job(records: list[JobRecord], scheduler: Scheduler) -> str:
    """The live job that packs the images and what it is doing; empty if there is none."""
    newest_first = records[::-1]
    for record in sorted(newest_first, key=lambda record: record.kind is JobKind.FINALIZE):
        for index in record.indices:
            state = handle_of(record).state(index, scheduler)
            if state.is_live:
                doing = ", ".join(filter(None, state))
                return f"the images to be packed (job {record.array_task(index)}: {doing})"
    return ""


def data_of(run_dir: Path) -> Path | None:
    """Folder of the shards of a run that is not trained; None if it is, or its settings cannot be read."""
    try:
        return None if is_trained(run_dir) else Path(read_run(run_dir).data)
    except (DamagedFile, SettingsError):
        return None


def what_is_wrong_with(data: Path) -> str:
    """What is wrong with packed images, from their names and sizes; empty if nothing is."""
    if not (data / MANIFEST_FILE).exists():
        return f"the images in {data} are not packed yet, or were removed"
    try:
        read_manifest(data)
    except ToolkitError as error:
        return str(error)
    return ""

"""Gathers what is known of a run for `explain`: our files, squeue, sacct and the job's logs."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from data_prep.errors import ToolkitError
from data_prep.shards import MANIFEST_FILE, read_manifest
from slurm.diagnose.explain import Case
from slurm.diagnose.log_files import last_error, last_notice
from slurm.job_records import JobRecord, read_jobs, read_records
from slurm.local import is_running_here
from slurm.scheduler import QUEUED, RUNNING, Scheduler, ask_scheduler, newest_job
from vae.metrics import progress, saved_step
from vae.study import METRICS_FILE, PROVENANCE_FILE, RUN_FILE, Study, is_scored, is_trained, read_json


def gather(study_dir: Path, study: Study, names: Iterable[str]) -> list[Case]:
    """The cases of the runs `names`, in that order; SLURM is asked once."""
    data_dirs = {name: data_of(study_dir / name) for name in names}
    packing = {data: read_records(data) for data in set(data_dirs.values()) if data is not None}
    records = read_jobs(study_dir, study)
    scheduler = ask_scheduler([*records, *(record for known in packing.values() for record in known)])
    shards = {data: shards_missing(data) for data in packing}
    packers = {data: packing_job(known, scheduler) for data, known in packing.items()}
    cases = []
    for name, data in data_dirs.items():
        case = case_of(study_dir / name, study, records, scheduler)
        if data is not None:
            case["shards"] = shards[data]
            case["waits_for"] = packers[data] or case["waits_for"]
        cases.append(Case(**case))
    return cases


def case_of(run_dir: Path, study: Study, records: list[JobRecord], scheduler: Scheduler) -> dict[str, Any]:
    """What is known of one run, beside its data, by the names of `Case`."""
    index, kind = study.runs.index(run_dir.name), "evaluate" if is_trained(run_dir) else "train"
    busy = next(
        (record.id for record in records if record.cluster == "local" and is_running_here(record)), ""
    )
    case: dict[str, Any] = {
        "run": run_dir.name,
        "study": shlex.quote(shown(run_dir.parent)),
        "kind": kind,
        "is_done": is_scored(run_dir, study),
        "was_started": (run_dir / METRICS_FILE).exists() or (run_dir / "logs").is_dir(),
        "progress": where(run_dir) if kind == "train" else "",
        "saved": saved_step(run_dir) if kind == "train" else 0,
        "waits_for": "",
        "busy": busy,
    }
    record = newest_job(kind, index, records, scheduler)
    if record is None or case["is_done"]:
        return case
    state, reason = scheduler.state(record, index)
    element = record.array_task(index)
    case |= {"job": element, "is_local": record.cluster == "local", "state": state, "reason": reason}
    case |= {"start": clock(scheduler.starts.get(element, "")), "exit": scheduler.exits.get(element, "")}
    case |= {"was_begun": was_begun(run_dir, element), "waits_for": needed(scheduler.needs.get(element, ""))}
    if state not in (*RUNNING, *QUEUED, "UNKNOWN"):
        case["error"] = last_error(run_dir, index, record)
        case["notice"] = last_notice(run_dir.parent, record, index)
    return case


def where(run_dir: Path) -> str:
    """` at step 250 of 1,000`, or nothing before the first step."""
    now = progress(run_dir)
    return f" at step {now['step']:,} of {now['total_steps']:,}" if now["total_steps"] else ""


def was_begun(run_dir: Path, job: str) -> bool:
    """Whether this job has run before."""
    attempts = (read_json(run_dir / PROVENANCE_FILE) or {}).get("attempts", [])
    return any(attempt.get("job") == job for attempt in attempts)


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
    for kind in ("pack", "finalize"):
        for record in reversed(records):
            for index in record.indices if record.kind == kind else ():
                state, reason = scheduler.state(record, index)
                if state in RUNNING + QUEUED:
                    doing = f"{state}, {reason}" if reason else state
                    return f"the images to be packed (job {record.array_task(index)}: {doing})"
    return ""


def data_of(run_dir: Path) -> Path | None:
    """Folder of the shards of a run that is not trained; None if it is, or its settings cannot be read."""
    if is_trained(run_dir):
        return None
    try:  # not read_run: checking a thousand runs takes seconds, and this is one word of each
        settings = yaml.safe_load((run_dir / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    data = settings.get("data") if isinstance(settings, dict) else None
    return Path(data) if isinstance(data, str) else None


def shards_missing(data: Path) -> str:
    """What is wrong with packed images, from their names and sizes; empty if nothing is."""
    if not (data / MANIFEST_FILE).exists():
        return f"the images in {data} are not packed yet, or were removed"
    try:
        splits = read_manifest(data).splits
    except ToolkitError as error:
        return str(error)
    names = [shard.name for shards in splits.values() for shard in shards]
    lost = [name for name in names if not (data / name).exists()]
    if not lost:
        return ""
    return (
        f"{len(lost)} of {len(names)} shards are missing in {data} ({lost[0]}{', ...' if lost[1:] else ''})"
    )


def shown(folder: Path) -> str:
    """A folder as one would type it here."""
    relative = os.path.relpath(folder)
    return str(folder) if relative.startswith("..") else relative

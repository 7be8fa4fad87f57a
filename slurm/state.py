"""What is going on: our own files, squeue and sacct, merged. Any of the two may be missing, late or wrong.

Our files say what is finished; squeue says what is queued or running; sacct says how the rest ended.
No answer is "unknown", never "failed".
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from slurm.job_records import JobRecord, read_jobs, read_records
from slurm.plan import RunFacts, StudyFacts
from slurm.scheduler import QUEUED, RUNNING, Scheduler, ask_scheduler, live_job, newest_job
from vae.goodput import goodput
from vae.metrics import _ends, _progress, saved_step, slowest_stop_s
from vae.study import (
    METRICS_FILE,
    PROVENANCE_FILE,
    SCORES_FILE,
    Study,
    has_report,
    is_scored,
    is_trained,
    read_json,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunState:
    """Everything one row of `status` tells."""

    name: str
    state: str
    """done, scoring, trained, training, queued, failed, cancelled, stopped, missing or unknown."""
    detail: str
    """Why, in SLURM's words, where that helps."""
    step: int
    total_steps: int
    epoch: float
    loss: float | None
    images_per_s: float | None
    eta_s: float | None
    restarts: int
    scores: dict[str, float]
    label: str
    """What the scores must carry with them, as in `smoke, not comparable`."""
    goodput: float | None = None
    """Share of its allocated time, in 0..1, spent in steps whose results survived; see vae/goodput.py."""


def study_states(study_dir: Path, study: Study) -> list[RunState]:
    """The state of every run, in the order of study.yaml."""
    return all_states({study_dir: study})[study_dir]


def all_states(studies: dict[Path, Study]) -> dict[Path, list[RunState]]:
    """The state of every run of several studies, by the study's folder; SLURM is asked once."""
    records = {study_dir: read_jobs(study_dir, study) for study_dir, study in studies.items()}
    scheduler = ask_scheduler([record for known in records.values() for record in known])
    return {
        study_dir: [
            run_state(study_dir / name, study, index, records[study_dir], scheduler)
            for index, name in enumerate(study.runs)
        ]
        for study_dir, study in studies.items()
    }


def run_state(
    run_dir: Path, study: Study, index: int, records: list[JobRecord], scheduler: Scheduler
) -> RunState:
    """The state of one run."""
    state, detail = _merge(run_dir, study, index, records, scheduler)
    scores = read_json(run_dir / SCORES_FILE) or {}
    attempts = (read_json(run_dir / PROVENANCE_FILE) or {}).get("attempts", [])
    values = {name: score.get("value") for name, score in scores.get("scores", {}).items()}
    start, tail = _ends(run_dir / METRICS_FILE)
    return RunState(
        name=run_dir.name,
        state=state,
        detail=detail,
        restarts=max(0, len(attempts) - 1),
        scores={name: value for name, value in values.items() if isinstance(value, (int, float))},
        label=scores.get("label", ""),
        goodput=goodput(attempts, tail),
        **_progress(start, tail),
    )


def _merge(
    run_dir: Path, study: Study, index: int, records: list[JobRecord], scheduler: Scheduler
) -> tuple[str, str]:
    """(state, detail): what is finished by our files, what goes on by the scheduler."""
    kind = "evaluate" if is_trained(run_dir) else "train"
    if is_scored(run_dir, study):
        return "done", ""
    state, reason = _newest(kind, index, records, scheduler)
    if state in RUNNING:
        return ("scoring" if kind == "evaluate" else "training"), reason
    if state in QUEUED:
        return ("trained" if kind == "evaluate" else "queued"), reason
    if kind == "evaluate" and state in ("", "GONE", "INTERRUPTED", "COMPLETED"):
        return "trained", ""
    words = {
        "": "missing",
        "GONE": "stopped",
        "UNKNOWN": "unknown",
        "CANCELLED": "cancelled",
        "COMPLETED": "stopped",
        "INTERRUPTED": "stopped",
    }
    if not state and (run_dir / METRICS_FILE).exists():
        return "stopped", ""
    detail = [reason if state in words else f"{kind} {state}"]
    if state == "INTERRUPTED":
        detail = ["interrupted"]
    if state in ("CANCELLED", "INTERRUPTED") and (saved := saved_step(run_dir)):
        detail += [f"saved at step {saved:,}"]
    return words.get(state, "failed"), ", ".join(filter(None, detail))


def _newest(kind: str, index: int, records: list[JobRecord], scheduler: Scheduler) -> tuple[str, str]:
    """(state, reason) of the live job of that kind, else of the newest; two empty texts without any."""
    record = newest_job(kind, index, records, scheduler)
    return scheduler.state(record, index) if record else ("", "")


def study_facts(
    study_dir: Path, study: Study, asked: tuple[str, ...], data_dir: Path, num_shards: int | None
) -> StudyFacts:
    """What `request.decide` needs to know of the runs `asked` for; `num_shards` is None for packed data.

    SLURM is asked only about what is not finished, so a finished study needs no SLURM that remembers it.

    Raises:
        ClusterError: SLURM does not answer, so nobody knows what is already running.
    """
    is_packed = num_shards is None
    records, data_records = read_jobs(study_dir, study), [] if is_packed else read_records(data_dir)
    scheduler = ask_scheduler([*records, *data_records], with_accounts=False)
    is_reported = has_report(study_dir, study)

    def run_facts(name: str, index: int) -> RunFacts:
        trained, scored = is_trained(study_dir / name), is_scored(study_dir / name, study)
        train_job = "" if trained else live_job("train", index, records, scheduler)
        evaluate_job = "" if scored else live_job("evaluate", index, records, scheduler)
        stop_s = 0.0 if trained else slowest_stop_s(study_dir / name)
        return RunFacts(name, index, trained, scored, train_job, evaluate_job, stop_s)

    return StudyFacts(
        study_dir,
        runs=tuple(run_facts(name, index) for index, name in enumerate(study.runs) if name in asked),
        data_dir=data_dir,
        is_packed=is_packed,
        num_shards=num_shards or 0,
        pack_job=live_job("finalize", 0, data_records, scheduler),
        has_report=is_reported,
        report_job="" if is_reported else live_job("report", 0, records, scheduler),
    )

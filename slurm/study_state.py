"""The state of each run, merged from its folder, squeue and sacct; each may be missing, late or wrong.

The run folder says what is finished; squeue says what is queued or running; sacct says how the rest ended.
No answer is "unknown", never "failed".
"""

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from data_prep.errors import DamagedFile
from slurm.job_handle import handle_of, live_job, newest_job
from slurm.job_records import Attempts, JobRecord, read_all_attempts, read_jobs, read_records
from slurm.job_states import CANCELLED, GONE, INTERRUPTED, UNKNOWN, JobState, Look, Scheduler, ask_scheduler
from slurm.node.task import JobKind
from slurm.plan import RunFacts, StudyFacts
from vae.digests import LAUNCH_AGAIN, find_losses
from vae.goodput import goodput
from vae.metrics import Progress, progress_of, read_ends, slowest_stop_s
from vae.provenance import Attempt, read_attempts
from vae.run_dir import METRICS_FILE, read_done, read_scores_summary, saved_step
from vae.run_state import RunState
from vae.study import Study, has_report, is_scored, is_trained

# What the state of an ended job means for a run that is not trained; any other is a failure.
ENDED = {
    GONE: RunState.STOPPED,
    "COMPLETED": RunState.STOPPED,
    INTERRUPTED: RunState.STOPPED,
    CANCELLED: RunState.CANCELLED,
    UNKNOWN: RunState.UNKNOWN,
}


@dataclass(frozen=True)
class RunStatus:
    """Everything one row of `status` tells."""

    name: str
    state: RunState
    detail: str = ""
    """Why, in SLURM's words, where that helps."""
    progress: Progress = field(default_factory=Progress)
    restarts: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    label: str = ""
    """What the scores must carry with them, as in `smoke, not comparable`."""
    goodput: float | None = None
    """Share of its allocated time, in 0..1, spent in steps whose results survived; see vae/goodput.py."""


def study_states(study_dir: Path, study: Study, look: Look = ask_scheduler) -> list[RunStatus]:
    """The state of every run, in the order of study.yaml, by one `look` at SLURM."""
    return all_states({study_dir: study}, look)[study_dir]


def all_states(studies: dict[Path, Study], look: Look = ask_scheduler) -> dict[Path, list[RunStatus]]:
    """The state of every run of several studies, by the study's folder, by one `look` at SLURM."""
    attempts = {study_dir: read_all_attempts(study_dir, study) for study_dir, study in studies.items()}
    records = {folder: read_jobs(folder, study, attempts[folder]) for folder, study in studies.items()}
    scheduler = look(chain.from_iterable(records.values()))
    return {
        study_dir: states_of(study_dir, study, records[study_dir], scheduler, attempts[study_dir])
        for study_dir, study in studies.items()
    }


def states_of(
    study_dir: Path,
    study: Study,
    records: list[JobRecord],
    scheduler: Scheduler,
    attempts: Attempts | None = None,
) -> list[RunStatus]:
    """The state of every run, in the order of study.yaml, by one look at SLURM."""
    known, runs = attempts or {}, enumerate(study.runs)
    return [
        run_state(study_dir / name, study, index, records, scheduler, known.get(name)) for index, name in runs
    ]


def run_state(
    run_dir: Path,
    study: Study,
    index: int,
    records: list[JobRecord],
    scheduler: Scheduler,
    attempts: tuple[Attempt, ...] | None = None,
) -> RunStatus:
    """The state of one run; one with a damaged file says so, and takes no other run down with it."""
    try:
        done, summary = read_done(run_dir), read_scores_summary(run_dir)
        attempts = read_attempts(run_dir) if attempts is None else attempts
        start, tail = read_ends(run_dir)
        losses = find_losses(run_dir, done)
    except DamagedFile as error:
        return RunStatus(run_dir.name, RunState.DAMAGED, f"{error}; {error.hint}")
    is_trained = done is not None and not losses.weights
    kind = JobKind.EVALUATE if is_trained else JobKind.TRAIN
    record = newest_job(kind, index, records, scheduler)
    job = handle_of(record).state(index, scheduler) if record else None
    if not is_trained:
        state, detail = merge_training(run_dir, job, losses.weights)
    elif summary and done and summary.is_of(done, study.extractor, study.scores) and not losses.scores:
        state, detail = RunState.DONE, ""
    else:
        state, detail = merge_scoring(job, losses.scores)
    return RunStatus(
        run_dir.name,
        state,
        detail,
        progress_of(start, tail),
        restarts=max(0, len(attempts) - 1),
        scores=summary.values if summary else {},
        label=summary.label if summary else "",
        goodput=goodput(attempts, tail),
    )


def merge_scoring(job: JobState | None, loss: str = "") -> tuple[RunState, str]:
    """(state, detail) of a run that is trained and lacks scores, from its newest scoring job."""
    if job is None or job.state in (GONE, INTERRUPTED, "COMPLETED"):
        return RunState.TRAINED, f"{loss}; {LAUNCH_AGAIN}" if loss else ""
    if job.is_running:
        return RunState.SCORING, job.reason
    if job.is_queued:
        return RunState.TRAINED, job.reason
    if job.state in ENDED:
        return ENDED[job.state], job.reason
    return RunState.FAILED, f"{JobKind.EVALUATE} {job.state}"


def merge_training(run_dir: Path, job: JobState | None, loss: str = "") -> tuple[RunState, str]:
    """(state, detail) of a run that is not trained, or lost its weights, from its newest training job."""
    if loss and (job is None or not job.is_live):
        return RunState.DAMAGED, f"{loss}; {LAUNCH_AGAIN}"
    if job is None:
        return (RunState.STOPPED if (run_dir / METRICS_FILE).exists() else RunState.MISSING), ""
    if job.is_running:
        return RunState.TRAINING, job.reason
    if job.is_queued:
        return RunState.QUEUED, job.reason
    if job.state not in ENDED:
        return RunState.FAILED, f"{JobKind.TRAIN} {job.state}"
    details = ["interrupted" if job.state == INTERRUPTED else job.reason]
    if job.state in (CANCELLED, INTERRUPTED) and (step := saved_step(run_dir)):
        details.append(f"saved at step {step:,}")
    return ENDED[job.state], ", ".join(filter(None, details))


def study_facts(
    study_dir: Path, study: Study, runs: tuple[str, ...], data_dir: Path, num_shards: int | None
) -> StudyFacts:
    """What `plan.decide` needs to know of these runs of the study; `num_shards` is None for packed data.

    SLURM is asked only about what is not finished, so a finished study needs no SLURM that remembers it.
    Raises ClusterError if SLURM does not answer, so nobody knows what is already running.
    """
    records = read_jobs(study_dir, study)
    data_records = [] if num_shards is None else read_records(data_dir)
    scheduler = ask_scheduler([*records, *data_records], with_accounts=False)
    is_reported = has_report(study_dir, study)

    def run_facts(name: str, index: int) -> RunFacts:
        trained, scored = is_trained(study_dir / name), is_scored(study_dir / name, study)
        return RunFacts(
            name,
            index,
            is_trained=trained,
            is_scored=scored,
            train_job="" if trained else live_job(JobKind.TRAIN, index, records, scheduler),
            evaluate_job="" if scored else live_job(JobKind.EVALUATE, index, records, scheduler),
            stop_s=0.0 if trained else slowest_stop_s(study_dir / name),
        )

    unscored = [index for index, name in enumerate(study.runs) if not is_scored(study_dir / name, study)]
    scoring = [live_job(JobKind.EVALUATE, index, records, scheduler) for index in unscored]
    return StudyFacts(
        study_dir,
        runs=tuple(run_facts(name, index) for index, name in enumerate(study.runs) if name in runs),
        data_dir=data_dir,
        num_shards=num_shards,
        pack_job=live_job(JobKind.FINALIZE, 0, data_records, scheduler),
        has_report=is_reported,
        report_job="" if is_reported else live_job(JobKind.REPORT, 0, records, scheduler),
        evaluate_jobs=tuple(filter(None, scoring)),
    )

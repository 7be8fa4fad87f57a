"""Progress messages for someone who waits: what changes in a study, and what a run writes into its logs."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from slurm.diagnose.explain import explain, is_settled
from slurm.diagnose.gather_case import gather
from slurm.diagnose.log_files import AttemptLogs, find_attempts
from slurm.job_records import read_jobs
from slurm.job_states import SchedulerWatch, array_tasks_of
from slurm.node.task import JobKind
from slurm.plan import JobRequest
from slurm.study_state import states_of
from vae.goodput import duration
from vae.metrics import Progress, read_progress
from vae.run_state import RunState
from vae.study import Study

log = logging.getLogger(__name__)

# Files are looked at this often; SLURM as seldom as its watch wants.
POLL_S = 3.0


class LocalFollower:
    """Logs when a local job begins, and each epoch of a training."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}

    def __call__(self, request: JobRequest, index: int) -> None:
        """Look at the job that is running now."""
        folder = Path(request.tasks[index].path)
        label = f"{request.kind} {folder.name}"
        if label not in self._epochs:
            log.info("%s begins", label)
        progress = read_progress(folder) if request.kind is JobKind.TRAIN else Progress()
        epoch = int(progress.epoch)
        if epoch > self._epochs.setdefault(label, 0):
            self._epochs[label] = epoch
            log.info("%s: epoch %d, %s", label, epoch, in_words(progress))


def in_words(progress: Progress) -> str:
    """How far a training is: its step, and loss, speed and time left as soon as there are any."""
    parts = [f"step {progress.step:,} of {progress.total_steps:,}"]
    if progress.loss is not None:
        parts += [f"loss {progress.loss:,.1f} nats/image", f"{progress.images_per_s:,.0f} images/s"]
    if progress.eta_s is not None:
        parts += [f"{duration(progress.eta_s)} left"]
    return ", ".join(parts)


def follow_jobs(study_dir: Path, study: Study) -> None:
    """Return when no job of the study is queued or running any more; logs every change on the way."""
    watch, logged = SchedulerWatch(), dict[str, RunState]()
    while True:
        records = read_jobs(study_dir, study)
        scheduler = watch.look(records)
        for status in states_of(study_dir, study, records, scheduler):
            if logged.get(status.name) is not status.state:
                detail = f" ({status.detail})" if status.detail else ""
                log.info("%s: %s%s", status.name, status.state, detail)
                logged[status.name] = status.state
        queued = array_tasks_of(records).intersection(scheduler.queue or ())
        if scheduler.queue is not None and queued <= scheduler.never_satisfiable():
            return
        time.sleep(POLL_S)


def follow_log(study_dir: Path, study: Study, run: str, rank: int) -> None:
    """Print what one rank of a run writes, attempt by attempt, until the run is done or nothing goes on."""
    watch, positions = SchedulerWatch(), dict[Path, int]()
    index, was_settled = study.runs.index(run), False
    while True:
        # looked at before the log is read: what is written until the end is then not missed
        case = gather(study_dir, study, (run,), watch.look)[0]
        print_new(find_attempts(study_dir / run, index, read_jobs(study_dir, study)), rank, positions)
        if is_settled(case) and was_settled:  # twice, because a job may have ended and the next not yet begun
            log.info("%s", explain(case))
            return
        was_settled = is_settled(case)
        time.sleep(POLL_S)


def print_new(attempts: Sequence[AttemptLogs], rank: int, positions: dict[Path, int]) -> None:
    """Print the rest of the logs begun so far, and go on to the newest; `positions` are in bytes."""
    for attempt in attempts:
        path = attempt.logs.get(rank)
        if path is None or (path not in positions and attempt is not attempts[-1]):
            continue
        if path not in positions:
            log.info("--- %s: %s", attempt.label, path)
        with path.open("rb") as file:
            file.seek(positions.get(path, 0))
            text = file.read().decode(errors="replace")
            positions[path] = file.tell()
        print(text, end="", flush=True)

"""Tells how a study goes on, for someone who waits for it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from slurm.control import array_tasks_of
from slurm.diagnose.explain import explain, is_settled
from slurm.diagnose.gather import gather
from slurm.diagnose.log_files import find_attempts, read_new
from slurm.job_records import read_jobs
from slurm.node.task import JobKind
from slurm.plan import JobRequest
from slurm.scheduler import ask_scheduler
from slurm.state import study_states
from vae.goodput import duration
from vae.metrics import Progress, read_progress
from vae.study import Study

log = logging.getLogger(__name__)

POLL_S = 3.0
# SLURM asks its users not to ask it more often.
SLURM_POLL_S = 5.0


class LocalFollower:
    """Tells when a local job begins, and of each epoch of a training."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}

    def __call__(self, request: JobRequest, index: int) -> None:
        """Look at the job that is running now."""
        folder = Path(request.tasks[index].path)
        label = f"{request.kind} {folder.name}"
        if label not in self._epochs:
            self._epochs[label] = 0
            log.info("%s begins", label)
        if request.kind is not JobKind.TRAIN:
            return
        now = read_progress(folder)
        epoch = int(now.epoch)
        if epoch > self._epochs[label]:
            self._epochs[label] = epoch
            log.info("%s: epoch %d, %s", label, epoch, described(now))


def described(now: Progress) -> str:
    """Where a training is, in words: step, and loss, speed and time left once `progress` knows them."""
    parts = [f"step {now.step:,} of {now.total_steps:,}"]
    if now.loss is not None:
        parts += [f"loss {now.loss:,.1f} nats/image", f"{now.images_per_s:,.0f} images/s"]
    if now.eta_s is not None:
        parts += [f"{duration(now.eta_s)} left"]
    return ", ".join(parts)


def follow_jobs(study_dir: Path, study: Study) -> None:
    """Return when no job of the study is queued or running any more; tells of every change on the way."""
    told: dict[str, str] = {}
    while True:
        for state in study_states(study_dir, study):
            if told.get(state.name) != state.state:
                detail = f" ({state.detail})" if state.detail else ""
                log.info("%s: %s%s", state.name, state.state, detail)
                told[state.name] = state.state
        records = read_jobs(study_dir, study)
        scheduler = ask_scheduler(records, with_accounts=False)
        live = (
            set(scheduler.queue or {}).intersection(array_tasks_of(records)) - scheduler.never_satisfiable()
        )
        if scheduler.queue is not None and not live:
            return
        time.sleep(SLURM_POLL_S)


def follow_log(study_dir: Path, study: Study, run: str, rank: int) -> None:
    """Print what one rank of a run writes, attempt by attempt, until the run is done or nothing goes on."""
    index, current, position, settled = study.runs.index(run), None, 0, 0
    while True:
        # looked at before the log is read: what is written until the end is then not missed
        case = gather(study_dir, study, (run,))[0]
        settled = settled + 1 if is_settled(case) else 0
        attempts = find_attempts(study_dir / run, index, read_jobs(study_dir, study))
        for attempt in attempts[-2:]:  # the end of the last one, then the newest
            path = attempt.logs.get(rank)
            if path is None or (current is None and attempt is not attempts[-1]):
                continue
            if path != current:
                if attempt is not attempts[-1]:
                    continue
                log.info("--- %s: %s", attempt.label, path)
                current, position = path, 0
            text, position = read_new(path, position)
            print(text, end="", flush=True)
        if settled > 1:  # twice, for a job may have ended and the next not yet begun
            log.info("%s", explain(case))
            return
        time.sleep(POLL_S)

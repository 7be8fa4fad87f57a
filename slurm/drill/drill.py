"""Plays a plan of faults on a study, and launches it again until it is done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from data_prep.errors import ClusterError
from slurm import client
from slurm.drill.faults import Blow, Hit, Refused, Ways
from slurm.job_records import read_jobs
from slurm.node.task import JobKind
from slurm.scheduler import Scheduler, live_job, newest_job, scheduler_of
from vae.metrics import read_progress
from vae.provenance import read_attempts
from vae.run_dir import DONE_FILE
from vae.study import (
    Study,
    has_report,
    is_scored,
    is_trained,
    read_study,
)

# How long a moment is waited for: the next save, and the end of a run that is at its last steps.
SAVE_LIMIT_S = 4.0
END_LIMIT_S = 4.0
LAST_STEPS = 0.98
GLANCE_S = 0.001
# A job that is starting is struck this much later at most; importing torch takes longer.
START_DELAY_S = 1.5
# Shared disks may show a save, or the end of a run, too late: then strike anyway.
MAX_MISSES = 2
# More launches than interruptions by so many mean that something else goes wrong.
MAX_IDLE_LAUNCHES = 8
# squeue may show a job a moment later than sbatch has accepted it.
LAUNCH_PAUSE_S = 3.0


class Target:
    """One run, and what is still to be done to it."""

    def __init__(self, run_dir: Path, index: int, blows: Sequence[Blow]) -> None:
        self.run_dir, self.index = run_dir, index
        self.blows = deque(blows)
        self.hits: list[Hit] = []
        self.is_running = self.is_training = False
        self._over = 0  # attempts that have ended, or have been hit
        self._seen_s: float | None = None  # since when its job has been seen to run
        self._must_restart = False
        self._misses = 0

    def look(self, is_running: bool) -> bool:
        """Whether it is time for the next blow."""
        self.is_running, self.is_training = is_running, False
        attempts = len(read_attempts(self.run_dir))
        if not is_running:
            self._over, self._seen_s, self._must_restart = attempts, None, False
        if not is_running or not self.blows:
            return False
        blow = self.blows[0]
        self._seen_s = self._seen_s or time.monotonic()
        self.is_training = attempts > self._over
        if not self.is_training:
            waited_s = time.monotonic() - self._seen_s
            is_fresh = blow.when == "starting" and not self._must_restart
            return is_fresh and waited_s >= blow.share * START_DELAY_S
        now = read_progress(self.run_dir)
        return 0 < min(blow.share, LAST_STEPS) * now.total_steps <= now.step

    @property
    def is_trained(self) -> bool:
        """Whether there is nothing left to interrupt."""
        return is_trained(self.run_dir)

    def await_moment(self) -> bool:
        """Whether the moment of the next blow is now, waiting for it a little."""
        when = self.blows[0].when
        if when == "ending":
            return glance(lambda: (self.run_dir / DONE_FILE).exists(), END_LIMIT_S)
        if when != "saving" or glance(lambda: is_saving(self.run_dir), SAVE_LIMIT_S):
            self._misses = 0
            return True
        self._misses += 1
        if self._misses == MAX_MISSES:
            self.blows[0] = replace(self.blows[0], when="training")
        return False

    def add(self, hit: Hit) -> None:
        """Note a hit: the attempt it fell into will end."""
        self.hits.append(hit)
        self._over = len(read_attempts(self.run_dir))
        self._must_restart = True

    def add_beside(self, hit: Hit) -> None:
        """Note what was meant for another run and may have hit this one, too, at some time until now."""
        step = read_progress(self.run_dir).step
        self.hits.append(replace(hit, when="beside", step=step, time=time.time()))


def glance(is_now: Callable[[], bool], limit_s: float) -> bool:
    """Whether something comes true soon; looks often, for it may be over in milliseconds."""
    give_up = time.monotonic() + limit_s
    while not is_now():
        if time.monotonic() > give_up:
            return False
        time.sleep(GLANCE_S)
    return True


def is_saving(run_dir: Path) -> bool:
    """Whether a checkpoint is being written."""
    with suppress(FileNotFoundError):
        return any(path.suffix == ".part" for path in (run_dir / "checkpoints").iterdir())
    return False


class Drill:
    """One study that is launched, interrupted as planned, and launched again until it is done."""

    def __init__(
        self, study_dir: Path, launch: Callable[[], bool], ways: Ways, plan: dict[str, list[Blow]]
    ) -> None:
        """`launch` runs the command that a user would run, unless it is running already (False)."""
        self.study_dir = study_dir
        self.refused: dict[str, str] = {}
        """The site's words on each way that it does not allow."""
        self._launch, self._ways = launch, ways
        self._launched_s = time.monotonic()
        self._launches = 1
        launch()
        self.study: Study = read_study(study_dir)
        self.targets = [
            Target(study_dir / run, index, plan.get(run, ())) for index, run in enumerate(self.study.runs)
        ]

    @property
    def is_done(self) -> bool:
        """Whether every run is trained and scored, and the report is there."""
        return all(is_scored(target.run_dir, self.study) for target in self.targets) and has_report(
            self.study_dir, self.study
        )

    def tick(self, scheduler: Scheduler) -> list[tuple[Target, Hit]]:
        """Strike what is due, launch what is missing; returns the new hits."""
        records = read_jobs(self.study_dir, self.study)
        hits = []
        for target in self.targets:
            if target.is_trained:
                target.is_running = False
                continue
            record = newest_job(JobKind.TRAIN, target.index, records, scheduler)
            state = scheduler.state(record, target.index)[0] if record else ""
            if target.look(state == "RUNNING") and record:
                hits += [(target, hit) for hit in self._strike(target, record.array_task(target.index))]
        if not hits and time.monotonic() - self._launched_s > LAUNCH_PAUSE_S and self._is_missing(scheduler):
            self._launches += self._launch()
            self._launched_s = time.monotonic()
            if self._launches > MAX_IDLE_LAUNCHES + sum(len(target.hits) for target in self.targets):
                raise ClusterError(
                    f"{self.study_dir.name} was launched {self._launches} times and does not get done",
                    f"python jobs/why.py {self.study_dir}",
                )
        return hits

    def _strike(self, target: Target, job: str) -> list[Hit]:
        blow = target.blows[0]
        when = "training" if blow.when == "starting" and target.is_training else blow.when
        try:
            strike = self._ways.aim(blow, job)
            step = read_progress(target.run_dir).step
            if not target.await_moment():
                return []
            hit = Hit(blow.what, when, step, time.time())
            if not strike():
                return []
        except Refused as error:
            self.refused[blow.what] = str(error)
            target.blows = deque(other for other in target.blows if other.what != blow.what)
            return []
        target.blows.popleft()
        target.add(hit)
        return [hit]

    def _is_missing(self, scheduler: Scheduler) -> bool:
        """Whether something is neither done nor queued nor running."""
        records = read_jobs(self.study_dir, self.study)
        try:
            for target in self.targets:
                kind = JobKind.EVALUATE if target.is_trained else JobKind.TRAIN
                if is_scored(target.run_dir, self.study):
                    continue
                if not live_job(kind, target.index, records, scheduler):
                    return True
            if has_report(self.study_dir, self.study):
                return False
            return not live_job(JobKind.REPORT, 0, records, scheduler)
        except ClusterError:  # at work on this machine, or squeue does not answer
            return False


def ask_queue() -> Scheduler:
    """One look at the queue alone: accounts are asked for much too often otherwise."""
    return scheduler_of((), client.queue())

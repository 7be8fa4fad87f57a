"""One study under fault injection: faults are injected as planned, and it is launched until it is done."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import ClusterError
from slurm import client
from slurm.cancel_throttle import cancel, live_jobs
from slurm.client import LEAST_EVERY_S, QueueWatch, SlurmRefused
from slurm.drill.faults import (
    FaultKind,
    InjectedFault,
    Injection,
    Moment,
    PlannedFault,
    Preparer,
    RunFaults,
)
from slurm.drill.verdict import logs_of, training_logs
from slurm.job_handle import handle_of, live_job, newest_job
from slurm.job_records import JobRecord, read_jobs
from slurm.job_states import Scheduler, scheduler_of
from slurm.node.task import JobKind
from vae.events import AttemptStarted, by_attempt, read_events
from vae.metrics import read_progress
from vae.run_dir import DONE_FILE, is_saving
from vae.study import Study, has_report, is_scored, is_trained, read_study

# How long a moment is waited for: the next save, which shared disks may show too late (then the fault comes
# anyway), and the end of a run that is at its last steps.
SAVE_LIMIT_S = 4.0
END_LIMIT_S = 4.0
LAST_STEPS = 0.98
POLL_S = 0.001
# A fault that comes while a job is starting comes this much later at most; importing torch takes longer.
START_DELAY_S = 1.5
# A fault after a warning follows it by this much at most, and one during scoring the start of that job.
AFTER_WARNING_S = 1.0
SCORING_DELAY_S = 4.0
# More launches than faults by so many mean that something else goes wrong.
MAX_IDLE_LAUNCHES = 8
# squeue may show a job a moment later than sbatch has accepted it.
LAUNCH_PAUSE_S = 3.0


class Target:
    """One run, the faults that are still to come to it, and those it has got.

    What it does is read from its own files first: what squeue has said may be a minute old.
    """

    def __init__(self, run_dir: Path, index: int, faults: RunFaults, attempts: int) -> None:
        """`attempts` have begun, and are over."""
        self.run_dir, self.index = run_dir, index
        self.planned, self.injected = deque(faults.planned), list(faults.injected)
        self.attempts = attempts
        self.is_running = self.is_training = False
        self.job = ""
        """The job that trains it, or is about to."""
        self._attempts_over = attempts  # or ended by the last fault in a moment
        self._logs_over: set[tuple[str, int]] = set()
        self._scorings_over = logs_of(run_dir, JobKind.EVALUATE)
        self._must_restart = False
        self._started_s = math.inf  # since when its job has been seen to start
        self.not_before_s = 0.0

    def is_due(self, queued_job: str) -> bool:
        """Whether it is time for the next fault; `queued_job` is the job that squeue shows as running."""
        starts, now_s = read_starts(self.run_dir), time.monotonic()
        self.attempts, self.is_training = len(starts), len(starts) > self._attempts_over
        self._must_restart = self._must_restart and bool(queued_job)
        self.job = starts[-1].job if self.is_training else self._starting_job(starts, queued_job)
        self.is_running = bool(self.job or queued_job)
        self._started_s = min(self._started_s, now_s) if self.job and not self.is_training else math.inf
        if not (self.job and self.planned and now_s >= self.not_before_s):
            return False
        fault = self.planned[0]
        if fault.moment is Moment.SCORING:
            return False
        if self.is_training:
            progress = read_progress(self.run_dir)
            return 0 < min(fault.share, LAST_STEPS) * progress.total_steps <= progress.step
        return fault.moment is Moment.STARTING and now_s - self._started_s >= fault.share * START_DELAY_S

    def is_due_in_scoring(self) -> bool:
        """As `is_due`, of a run that is trained: whether its scoring has begun, some time ago."""
        begun = sorted(logs_of(self.run_dir, JobKind.EVALUATE) - self._scorings_over)
        self.job, now_s = begun[-1][0] if begun else "", time.monotonic()
        self.is_running = self.is_training = False
        self._started_s = min(self._started_s, now_s) if begun else math.inf
        if not self.planned or self.planned[0].moment is not Moment.SCORING or now_s < self.not_before_s:
            return False
        return now_s - self._started_s >= self.planned[0].share * SCORING_DELAY_S

    def _starting_job(self, starts: list[AttemptStarted], queued_job: str) -> str:
        """The job that is about to train: the one whose log has just begun, or what squeue shows."""
        begun = {(start.job, start.restart) for start in starts}
        logs = training_logs(self.run_dir) - self._logs_over - begun
        return max(logs)[0] if logs else "" if self._must_restart else queued_job

    def wait_for_moment(self) -> Moment | None:
        """The moment that has come for the next fault, after a short wait; None if it is still to come."""
        moment = self.planned[0].moment
        if moment is Moment.ENDING and not comes_true((self.run_dir / DONE_FILE).exists, END_LIMIT_S):
            return None
        if moment is Moment.SAVING and not comes_true(lambda: is_saving(self.run_dir), SAVE_LIMIT_S):
            return Moment.TRAINING
        return Moment.TRAINING if moment is Moment.STARTING and self.is_training else moment

    def faults(self) -> RunFaults:
        """What is still to come, and what has come."""
        return RunFaults(tuple(self.planned), tuple(self.injected))

    def note(self, fault: InjectedFault) -> None:
        """Note that the next fault was injected: the attempt it fell into is about to end."""
        self.planned.popleft()
        self.injected.append(fault)
        self._attempts_over, self._logs_over = fault.attempts, training_logs(self.run_dir)
        self._scorings_over = logs_of(self.run_dir, JobKind.EVALUATE)
        self._must_restart, self._started_s = True, math.inf


def read_starts(run_dir: Path) -> list[AttemptStarted]:
    """The attempts at a run that have begun, oldest first."""
    return [course.started for course in by_attempt(read_events(run_dir))]


def comes_true(is_now: Callable[[], bool], limit_s: float) -> bool:
    """Whether something comes true soon; looks often, for it may be over in milliseconds."""
    give_up = time.monotonic() + limit_s
    while not is_now():
        if time.monotonic() > give_up:
            return False
        time.sleep(POLL_S)
    return True


@dataclass
class FaultedStudy:
    """A study that was launched, and what is still to be done to it."""

    study_dir: Path
    study: Study
    targets: list[Target]
    launch: Callable[[], bool]
    """Runs the command that a user would run, unless it is at work already (False)."""
    prepare: Preparer
    watch: QueueWatch
    """The queue, which is asked anew after all that is done here."""
    refused: dict[FaultKind, str] = field(default_factory=dict)
    """The site's words on each kind of fault that it does not allow."""
    _launches: int = 1
    _next_check_s: float = field(default_factory=lambda: time.monotonic() + LAUNCH_PAUSE_S)

    @property
    def is_done(self) -> bool:
        """Whether every run is trained and scored, and the report is there."""
        return not self._work_left()

    def _work_left(self) -> list[tuple[JobKind, int]]:
        """The job that each unfinished run needs next, and the report, with the index of the run."""
        left = []
        for target in self.targets:
            if not is_scored(target.run_dir, self.study):
                kind = JobKind.EVALUATE if is_trained(target.run_dir) else JobKind.TRAIN
                left.append((kind, target.index))
        return left if has_report(self.study_dir, self.study) else [*left, (JobKind.REPORT, 0)]

    def jobs(self) -> tuple[list[JobRecord], Scheduler]:
        """The jobs of the study, and the queue as it was a moment ago."""
        return read_jobs(self.study_dir, self.study), scheduler_of((), self.watch.look())

    def is_busy(self) -> bool:
        """Whether anything of the study is queued or running, or nobody knows."""
        records, scheduler = self.jobs()
        return bool(records if scheduler.queue is None else live_jobs(records, scheduler))

    def tick(self) -> list[tuple[Target, InjectedFault]]:
        """Inject what is due, launch what is missing; new faults. ClusterError if launches are in vain."""
        records, scheduler = self.jobs()
        faults = []
        for target in self.targets:
            if is_trained(target.run_dir):
                is_due = target.is_due_in_scoring()
            else:
                is_due = target.is_due(running_job(records, target.index, scheduler))
            if is_due and (fault := self._inject(target)):
                faults.append((target, fault))
        if not faults and time.monotonic() > self._next_check_s:
            self._launch_missing(records, scheduler)
            self._next_check_s = time.monotonic() + LAUNCH_PAUSE_S
        return faults

    def _inject(self, target: Target) -> InjectedFault | None:
        """Inject the next fault of a run when its moment has come; returns it, if anything was hit."""
        planned = target.planned[0]
        try:
            inject = self._prepare(planned, target)
            restart = client.restarts(target.job) if planned.kind.is_final else None
            if planned.moment is Moment.WARNED and not self._warn(planned, target):
                return None
            if not (moment := target.wait_for_moment()):
                return None
            now_s, was_hit = time.time(), inject()
        except SlurmRefused as error:
            self.refused[planned.kind] = str(error)
            target.planned = deque(fault for fault in target.planned if fault.kind is not planned.kind)
            return None
        self.watch.expire()
        if not was_hit:
            target.not_before_s = time.monotonic() + LEAST_EVERY_S  # it has ended by itself
            return None
        step = read_progress(target.run_dir).step
        # a job that was starting may have begun to train in the meantime
        attempts = len(read_starts(target.run_dir)) if moment is Moment.STARTING else target.attempts
        fault = InjectedFault(
            planned.kind,
            moment,
            planned.share,
            step=step,
            attempts=attempts,
            time=now_s,
            job=target.job,
            restart=restart,
        )
        target.note(fault)
        return fault

    def _prepare(self, planned: PlannedFault, target: Target) -> Injection:
        """As `prepare`; but jobs/cancel.py cancels runs, not jobs."""
        if planned.kind is not FaultKind.CANCELLED:
            return self.prepare(planned, target.job)
        run, of_job = target.run_dir.name, f"(job {target.job})"
        return lambda: any(
            line.startswith("cancelled: ") and line.endswith(of_job)
            for line in cancel(self.study_dir, self.study, run)
        )

    def _warn(self, planned: PlannedFault, target: Target) -> bool:
        """Send the stop signal, and let a moment pass; whether anything was hit."""
        was_hit = self.prepare(PlannedFault(FaultKind.WARNED), target.job)()
        time.sleep(planned.share * AFTER_WARNING_S)
        return was_hit

    def _launch_missing(self, records: list[JobRecord], scheduler: Scheduler) -> None:
        """Launch again if something is neither done nor queued nor running."""
        try:
            jobs = [live_job(kind, index, records, scheduler) for kind, index in self._work_left()]
        except ClusterError:  # at work on this machine, or squeue does not answer
            return
        if all(jobs):
            return
        self._launches += self.launch()
        self.watch.expire()
        if self._launches > MAX_IDLE_LAUNCHES + sum(len(target.injected) for target in self.targets):
            message = f"{self.study_dir.name} was launched {self._launches} times and does not get done"
            raise ClusterError(message, f"python jobs/why.py {self.study_dir}")


def running_job(records: list[JobRecord], index: int, scheduler: Scheduler) -> str:
    """The job that trains a run as far as the scheduler tells; empty without one."""
    record = newest_job(JobKind.TRAIN, index, records, scheduler)
    is_running = record is not None and handle_of(record).state(index, scheduler).state == "RUNNING"
    return record.array_task(index) if record and is_running else ""


def launch_with_faults(
    study_dir: Path,
    launch: Callable[[], bool],
    prepare: Preparer,
    watch: QueueWatch,
    plan: Mapping[str, RunFaults],
) -> FaultedStudy:
    """Launch a study, for the first time or once more, and return it."""
    attempts = {run: len(read_starts(study_dir / run)) for run in plan}  # those of an earlier drill are over
    launch()
    watch.expire()
    study = read_study(study_dir)
    targets = [
        Target(study_dir / run, index, plan.get(run, RunFaults()), attempts.get(run, 0))
        for index, run in enumerate(study.runs)
    ]
    return FaultedStudy(study_dir, study, targets, launch, prepare, watch)

"""The verdict on an interrupted run: what each fault cost, and whether it ended like an unbroken one.

Three witnesses tell of its attempts: events.jsonl, provenance.json and the log files. Where they disagree, or
one is silent, nothing has been shown, and that is a problem as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from data_prep.errors import DamagedFile
from slurm.diagnose.log_files import find_attempts
from slurm.drill.faults import FaultKind, InjectedFault, Moment
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from vae.events import AttemptStarted, Completed, Course, by_attempt, read_events
from vae.metrics import StepLine, read_metrics
from vae.provenance import read_attempts
from vae.run_dir import read_done, rendezvous_path
from vae.study import is_scored, is_trained, read_run, read_study

# Beside the interval itself: a slow step, and the save that was due.
SLACK_S = 3.0
# Losses of runs on several ranks or on a GPU, in double precision: only the order of sums differs.
TOLERANCE = 1e-9
# These do not end an attempt, or some time later; any other fault has ended it by then.
NOT_AT_ONCE = (FaultKind.LAUNCHER_KILLED, FaultKind.TIME_LIMIT)
EFFECT_LIMIT_S = 20.0
# What attempts leave while they work, and remove.
TEMPORARY = ("*.part", rendezvous_path(Path(), "*").name, "*.save_tmp")


def judge_run(run_dir: Path, faults: Sequence[InjectedFault], unbroken: Path) -> list[str]:
    """What is not as it must be with a run; a file of it that cannot be judged is a problem, too."""
    try:
        problems = judge_story(run_dir, faults) + judge_restarts(run_dir, read_restarts(run_dir, faults))
        return [f"{run_dir.name}: {problem}" for problem in problems + judge_end(run_dir, unbroken)]
    except DamagedFile as error:
        return [str(error)]


def judge_story(run_dir: Path, faults: Sequence[InjectedFault]) -> list[str]:
    """Where events, provenance, log files and the faults that were injected do not tell the same story."""
    events, done = read_events(run_dir), read_done(run_dir)
    courses = by_attempt(events)
    if not courses or courses[0].started is not events[0]:
        return ["events.jsonl does not begin with the start of an attempt"]
    problems = compare_attempts(run_dir, [course.started for course in courses])
    problems += judge_faults(courses, faults) + judge_cancels(run_dir, courses, faults)
    if done and not (isinstance(events[-1], Completed) and events[-1].step == done.step):
        problems.append(f"complete at step {done.step}, but that is not the last of its events")
    return problems


def compare_attempts(run_dir: Path, starts: Sequence[AttemptStarted]) -> list[str]:
    """Where the attempts of events.jsonl are not those of provenance.json, or have left no log."""
    attempts, logs = read_attempts(run_dir), training_logs(run_dir)
    if len(starts) != len(attempts):
        return [f"{len(starts)} attempts in events.jsonl, {len(attempts)} in provenance.json"]
    problems = []
    for number, (start, attempt) in enumerate(zip(starts, attempts, strict=True), 1):
        name = f"attempt {number} (job {attempt.job}, restart {attempt.restart})"
        if (start.job, start.restart, start.step) != (attempt.job, attempt.restart, attempt.from_step):
            problems.append(f"{name} is another in events.jsonl than in provenance.json")
        if attempt.cluster in (Backend.SLURM, Backend.LOCAL) and (start.job, start.restart) not in logs:
            problems.append(f"{name} has left no log")
    return problems


def training_logs(run_dir: Path) -> set[tuple[str, int]]:
    """Job and restart of each start of a training that has left a log of rank 0."""
    return logs_of(run_dir, JobKind.TRAIN)


def logs_of(run_dir: Path, kind: JobKind) -> set[tuple[str, int]]:
    """The same of each start of a job of that kind."""
    attempts = [logs for logs in find_attempts(run_dir, 0, []) if logs.kind is kind]
    return {(logs.job, logs.restart) for logs in attempts if 0 in logs.logs}


def judge_cancels(run_dir: Path, courses: Sequence[Course], faults: Sequence[InjectedFault]) -> list[str]:
    """Jobs that have come back after their user had cancelled them, or of which nobody knows."""
    starts = {(course.started.job, course.started.restart) for course in courses}
    starts |= training_logs(run_dir) | logs_of(run_dir, JobKind.EVALUATE)
    problems = []
    for fault in faults:
        where = f"{fault}, at step {fault.step}"
        if not fault.kind.is_final:
            continue
        if not fault.job or fault.restart is None:
            problems.append(f"{where}: which start of which job was cancelled is unknown")
        elif any(job == fault.job and restart > fault.restart for job, restart in starts):
            problems.append(f"{where}: job {fault.job} has come back")
    return problems


def judge_faults(courses: Sequence[Course], faults: Sequence[InjectedFault]) -> list[str]:
    """Faults that must have ended an attempt, each its own, and did not."""
    problems, ended = [], set[int]()
    newest_s = max(event.time for event in (courses[-1].started, *courses[-1].events))
    for fault in faults:
        ends_it = fault.moment in (Moment.TRAINING, Moment.WARNED, Moment.SAVING)
        if not ends_it or fault.kind in NOT_AT_ONCE:
            continue
        where = f"{fault}, at step {fault.step}: attempt {fault.attempts}"
        if not 1 <= fault.attempts <= len(courses):
            problems.append(f"{where} is not in events.jsonl")
        elif fault.attempts in ended:
            problems.append(f"{where} had ended before")
        elif fault.attempts == len(courses) and newest_s > fault.time + EFFECT_LIMIT_S:
            problems.append(f"{where} went on")
        ended.add(fault.attempts)
    return problems


@dataclass(frozen=True)
class Restart:
    """The end of one attempt and the start of the next."""

    before: Course
    after: AttemptStarted
    faults: tuple[InjectedFault, ...]
    """What was done to the run in between; nothing if its scheduler ended the attempt."""

    @property
    def stopped_at(self) -> int:
        """The last step that is known to have been trained."""
        return max([self.after.reached_step, *(event.step for event in self.before.events)])

    @property
    def lost_steps(self) -> int:
        """Steps that had to be redone, as far as they were written down."""
        return max(0, self.stopped_at - self.after.step)

    @property
    def was_signalled(self) -> bool:
        """Whether all that happened let the run save first; one that is starting has nothing to save."""
        deciding = [fault for fault in self.faults if fault.moment is not Moment.STARTING] or self.faults
        return all(fault.kind.is_warning for fault in deciding)


def read_restarts(run_dir: Path, faults: Sequence[InjectedFault]) -> list[Restart]:
    """What lies between the attempts of a run."""
    pairs = enumerate(pairwise(by_attempt(read_events(run_dir))), 1)
    return [
        Restart(before, after.started, tuple(fault for fault in faults if fault.attempts == number))
        for number, (before, after) in pairs
    ]


def judge_restarts(run_dir: Path, restarts: Sequence[Restart]) -> list[str]:
    """What was lost against the promise: nothing after a warning, else at most the checkpoint interval."""
    problems, interval_s = [], 60 * read_run(run_dir).checkpoint_every_min
    for restart in restarts:
        cause = " and ".join(map(str, restart.faults)) or "stopped by its scheduler"
        redone = f"{cause} at step {restart.stopped_at}: {restart.lost_steps} steps redone"
        redone_s = restart.after.redone_s
        if restart.was_signalled and restart.lost_steps:
            problems.append(f"{redone} in spite of a warning")
        elif redone_s > interval_s + SLACK_S:
            problems.append(f"{redone}, {redone_s:.1f} s; allowed: {interval_s:.1f} s")
        elif restart.after.step < restart.before.saved_step:
            problems.append(f"{redone}, though step {restart.before.saved_step} was saved")
    return problems


def describe(fault: InjectedFault, restarts: Sequence[Restart]) -> str:
    """One line on a fault: what, at which step, and how the run went on."""
    line = f"{fault}, at step {fault.step}"
    restart = next((restart for restart in restarts if fault in restart.faults), None)
    if restart is None:
        return f"{line}: no restart was needed"
    redone = f"{restart.lost_steps} steps redone" if restart.lost_steps else "nothing lost"
    after_s = restart.after.time - fault.time
    return f"{line}: resumed at step {restart.after.step} after {after_s:.0f} s, {redone}"


def judge_end(run_dir: Path, unbroken: Path) -> list[str]:
    """Where a run does not end like the unbroken one; on one CPU rank it must do so bit for bit."""
    losses, expected = losses_of(run_dir), losses_of(unbroken)
    if losses.keys() != expected.keys() or not expected:
        return [f"{len(losses)} logged steps, the unbroken run has {len(expected)}"]
    problems, is_exact = [], must_be_exact(run_dir) and must_be_exact(unbroken)
    worst = max(abs(losses[step] - expected[step]) / abs(expected[step]) for step in expected)
    if worst > (0.0 if is_exact else TOLERANCE):
        problems.append(f"losses differ by {worst:.3g} of their value")
    if is_exact:
        from vae.training.checkpoint import load_trained  # it imports torch: seconds, and only needed here

        if load_trained(run_dir)[1].weights_sha256 != load_trained(unbroken)[1].weights_sha256:
            problems.append("the weights differ")
    return problems


def losses_of(run_dir: Path) -> dict[int, float]:
    """The loss of each logged step."""
    return {line.step: line.loss for line in read_metrics(run_dir) if isinstance(line, StepLine)}


def must_be_exact(run_dir: Path) -> bool:
    """Whether every attempt ran on one CPU rank, where nothing changes the order of sums."""
    return all(attempt.world_size == 1 and attempt.device == "cpu" for attempt in read_attempts(run_dir))


def judge_study(study_dir: Path) -> list[str]:
    """What is missing in a study that should be done, and what should not be there any more."""
    study, problems = read_study(study_dir), []
    for run in study.runs:
        if not is_trained(study_dir / run):
            problems.append(f"{run} is not trained")
        elif not is_scored(study_dir / run, study):
            problems.append(f"{run} is not scored")
    for pattern in TEMPORARY:
        strays = sorted(study_dir.rglob(pattern))
        problems += [f"{path.relative_to(study_dir)} is left behind" for path in strays]
    return problems

"""Fault injection: which faults there are, which run gets which of them when, and how they get into a job."""

import random
import signal
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from data_prep.json_records import Record, Word
from slurm import client
from slurm.local import ranks_of, send_signal


class FaultKind(Word):
    """What is done to a job; the last five need an administrator's rights, or a broken machine."""

    WARNED = "warned"
    """It gets the stop signal, as before a time limit."""
    TERMINATED = "terminated"
    REQUEUED = "requeued"
    CANCELLED = "cancelled"
    """By jobs/cancel.py."""
    SCANCELLED = "scancelled"
    """By SLURM's own program alone."""
    KILLED = "killed"
    LAUNCHER_KILLED = "launcher killed"
    """The job itself goes on."""
    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    PREEMPTED_AT_ONCE = "preempted at once"
    RANK_KILLED = "rank killed"
    NODE_LOST = "node lost"

    @property
    def is_warning(self) -> bool:
        """Whether a run can save before it ends, so that nothing may be lost."""
        return "killed" not in self and self is not FaultKind.NODE_LOST

    @property
    def is_final(self) -> bool:
        """Whether its user has ended the job: it must not come back."""
        return self in (FaultKind.CANCELLED, FaultKind.SCANCELLED)


class Moment(Word):
    """What a run is doing when a fault comes."""

    TRAINING = "training"
    STARTING = "starting"
    WARNED = "warned"
    """It got the stop signal a moment ago: it is saving, or asking to run again."""
    SAVING = "saving"
    ENDING = "ending"
    SCORING = "scoring"
    BESIDE = "beside"
    """Whatever it was doing: the fault was meant for another run."""


class PlannedFault(Record, frozen=True):
    """One fault that is still to come."""

    kind: FaultKind
    moment: Moment = Moment.TRAINING
    share: float = 0.0
    """At which of the run's steps, as a share of all; of one at the start or during scoring, how late."""

    def __str__(self) -> str:
        return f"{self.kind} while {self.moment}"


class InjectedFault(PlannedFault, frozen=True, kw_only=True):
    """One fault that a run has got."""

    step: int
    """The last step that was written down."""
    attempts: int
    """So many attempts at the run had begun; it fell into the last of them, or into the start of the next."""
    time: float
    """Unix seconds."""
    job: str = ""
    """The job that was hit."""
    restart: int | None = None
    """How often SLURM had started that job again, where it says so."""


class RunFaults(Record, frozen=True):
    """The faults of one run."""

    planned: tuple[PlannedFault, ...] = ()
    injected: tuple[InjectedFault, ...] = ()


def faults_at(moment: Moment, *kinds: FaultKind) -> list[PlannedFault]:
    """One fault of each kind, all at the same moment; at which steps is still open."""
    return [PlannedFault(kind, moment) for kind in kinds]


# What the owner of a job can do to it at most sites, and on this machine.
SLURM_FAULTS = (
    *faults_at(Moment.TRAINING, FaultKind.WARNED, FaultKind.REQUEUED, FaultKind.TERMINATED),
    *faults_at(Moment.TRAINING, FaultKind.CANCELLED, FaultKind.SCANCELLED, FaultKind.KILLED),
    *faults_at(Moment.STARTING, FaultKind.WARNED, FaultKind.REQUEUED, FaultKind.SCANCELLED),
    *faults_at(Moment.WARNED, FaultKind.CANCELLED, FaultKind.SCANCELLED),
    *faults_at(Moment.SAVING, FaultKind.WARNED, FaultKind.KILLED, FaultKind.CANCELLED),
    *faults_at(Moment.ENDING, FaultKind.WARNED),
    *faults_at(Moment.SCORING, FaultKind.WARNED, FaultKind.SCANCELLED),
)
LOCAL_FAULTS = (
    *faults_at(Moment.TRAINING, FaultKind.WARNED, FaultKind.TERMINATED),
    *faults_at(Moment.TRAINING, FaultKind.KILLED, FaultKind.LAUNCHER_KILLED),
    *faults_at(Moment.STARTING, FaultKind.TERMINATED, FaultKind.KILLED),
    *faults_at(Moment.SAVING, FaultKind.WARNED, FaultKind.KILLED),
)
# The last planned fault that is not one at the end comes after this share of the steps.
LATEST_SHARE = 0.67


def schedule(mix: Sequence[PlannedFault], count: int, rng: random.Random) -> list[PlannedFault]:
    """So many faults: the whole mix in random order, as often as it takes."""
    faults: list[PlannedFault] = []
    while len(faults) < count:
        faults += rng.sample(mix, len(mix))
    return faults[:count]


def assign(
    faults: Sequence[PlannedFault], runs: Sequence[str], rng: random.Random
) -> dict[str, list[PlannedFault]]:
    """The faults shared out among the runs, at random steps of each; at most one of a run is at its end.

    The last steps are left alone: a fault takes a moment to arrive, and the run must still be training then.
    """
    plan: dict[str, list[PlannedFault]] = {run: [] for run in runs}
    for number, fault in enumerate(faults):
        own = plan[runs[number % len(runs)]]
        if fault.moment is Moment.ENDING and any(other.moment is Moment.ENDING for other in own):
            fault = msgspec.structs.replace(fault, moment=Moment.TRAINING)
        share = 1.0 if fault.moment is Moment.ENDING else rng.uniform(0.01, LATEST_SHARE)
        own.append(msgspec.structs.replace(fault, share=share))
    return {run: sorted(own, key=in_order) for run, own in plan.items()}


def in_order(fault: PlannedFault) -> tuple[bool, float]:
    """By steps; scoring comes after the training."""
    return fault.moment is Moment.SCORING, fault.share


# Injects a fault at once, and tells whether anything was hit; SlurmRefused if the site does not allow it.
Injection = Callable[[], bool]
# Prepares that for a job or an array task before its moment comes, which may last for milliseconds.
Preparer = Callable[[PlannedFault, str], Injection]

# What SLURM lets the owner of a job do to it.
SLURM_ORDERS: dict[FaultKind, Callable[[str], None]] = {
    FaultKind.WARNED: lambda job: client.signal_job(job, "USR2"),
    FaultKind.TERMINATED: lambda job: client.signal_job(job, "TERM"),
    FaultKind.KILLED: lambda job: client.signal_job(f"{job}.0", "KILL"),
    FaultKind.REQUEUED: client.requeue,
    FaultKind.SCANCELLED: client.cancel_running,
}


def on_slurm(fault: PlannedFault, job: str) -> Injection:
    """The order to SLURM."""
    return partial(inject_on_slurm, fault, job)


def inject_on_slurm(fault: PlannedFault, job: str) -> bool:
    """Give SLURM the order; a job that has just ended, or not begun, is not hit."""
    try:
        SLURM_ORDERS[fault.kind](job)
        return True
    except client.SlurmRefused as error:
        if not client.NOT_RUNNING.search(error.words):
            raise
        return False


def here(launcher: Callable[[], int | None]) -> Preparer:
    """The signal to processes of this machine; `launcher` gives the id of the launch command, if any."""
    return lambda fault, job: partial(inject_here, launcher, fault, job)


def inject_here(launcher: Callable[[], int | None], fault: PlannedFault, job: str) -> bool:
    """Send a signal to the ranks of a job of this machine, or to its launch command."""
    ranks = ranks_of(int(job.removeprefix("local-")))  # it is named after its controller
    if fault.kind is FaultKind.WARNED:  # as a scheduler does: every rank
        return send_signal(ranks, signal.SIGUSR2)
    if fault.kind is FaultKind.KILLED:
        return send_signal(ranks[:1], signal.SIGKILL)
    # as Ctrl-C, or a lost terminal
    number = signal.SIGTERM if fault.kind is FaultKind.TERMINATED else signal.SIGKILL
    pid = launcher()
    return send_signal([] if pid is None else [pid], number)

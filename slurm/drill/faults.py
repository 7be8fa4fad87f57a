"""Interrupts a study at planned moments in every way its site allows, and launches it until it is done.

A plan is a list of blows for each run: what is done to it, and when. `proof.py` then says what that cost, and
whether the result is still that of an unbroken run.
"""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from data_prep.errors import ClusterError

log = logging.getLogger(__name__)

Moment = Literal["training", "starting", "saving", "ending"]

# After these a run has been asked to stop, and must have lost nothing.
WARNINGS = ("warned", "terminated", "requeued", "cancelled", "time limit", "preempted", "preempted at once")

# What the owner of a job can do to it at most sites, and on this machine.
SLURM_DECK: tuple[tuple[str, Moment], ...] = (
    ("warned", "training"),
    ("requeued", "training"),
    ("killed", "training"),
    ("cancelled", "training"),
    ("warned", "starting"),
    ("terminated", "training"),
    ("warned", "saving"),
    ("killed", "saving"),
    ("requeued", "starting"),
    ("warned", "ending"),
)
LOCAL_DECK: tuple[tuple[str, Moment], ...] = (
    ("warned", "training"),
    ("killed", "training"),
    ("terminated", "training"),
    ("killed", "saving"),
    ("terminated", "starting"),
    ("killed", "starting"),
    ("warned", "saving"),
    ("launcher killed", "training"),
)
# The last planned blow that is not one at the end comes after this share of the steps.
LATEST = 0.67

COMMAND_LIMIT_S = 60
# SLURM's words for a job that has just ended, is just ending or has not begun: no refusal, only too late.
TOO_LATE = re.compile(
    r"invalid job|already|completing|pending|not running|no error|invalid step", re.IGNORECASE
)


@dataclass(frozen=True)
class Blow:
    """One interruption as planned."""

    what: str
    """Name of a way to interrupt."""
    when: Moment = "training"
    share: float = 0.0
    """At which of the run's steps, as a share of all; of a blow at the start, how late."""


@dataclass(frozen=True)
class Hit:
    """One interruption that has happened."""

    what: str
    when: str
    """A Moment, or `beside`: meant for another run, it hit this one too."""
    step: int
    """The last step that was written down."""
    time: float
    """Unix seconds."""

    @property
    def is_warning(self) -> bool:
        """Whether the run could save before it ended."""
        return self.what in WARNINGS


def shuffled(deck: Sequence[tuple[str, Moment]], count: int, rng: random.Random) -> list[Blow]:
    """So many cards: the deck in random order, as often as it takes."""
    cards: list[Blow] = []
    while len(cards) < count:
        cards += [Blow(what, when) for what, when in rng.sample(deck, len(deck))]
    return cards[:count]


def deal(cards: Sequence[Blow], runs: Sequence[str], rng: random.Random) -> dict[str, list[Blow]]:
    """The cards shared out among the runs, at random steps of each; at most one blow ends a run's plan.

    The last steps are left alone: a run is looked at every few seconds, and must still be training then.
    """
    plan: dict[str, list[Blow]] = {run: [] for run in runs}
    for number, card in enumerate(cards):
        mine = plan[runs[number % len(runs)]]
        if card.when == "ending" and any(blow.when == "ending" for blow in mine):
            card = replace(card, when="training")
        mine.append(replace(card, share=1.0 if card.when == "ending" else rng.uniform(0.01, LATEST)))
    return {run: sorted(blows, key=lambda blow: blow.share) for run, blows in plan.items()}


class Refused(ClusterError):
    """The site does not allow this way to interrupt a job."""


Strike = Callable[[], bool]


class Ways(Protocol):
    """How jobs of one site can be interrupted."""

    def aim(self, blow: Blow, job: str) -> Strike:
        """Get everything ready; what comes back strikes at once, and says whether anything was hit.

        Raises (from the strike): Refused.
        """


# What SLURM lets the owner of a job do to it.
SLURM_COMMANDS = {
    "warned": ("scancel", "--signal=USR2", "{job}"),
    "terminated": ("scancel", "--signal=TERM", "{job}"),
    "killed": ("scancel", "--signal=KILL", "{job}.0"),
    "requeued": ("scontrol", "requeue", "{job}"),
    "cancelled": ("scancel", "{job}"),
}


class SlurmWays:
    """Commands of SLURM, given by the owner of a job."""

    def aim(self, blow: Blow, job: str) -> Strike:
        """The command for a job or an element of an array."""
        command = [word.format(job=job) for word in SLURM_COMMANDS[blow.what]]
        return lambda: run_command(command)


def run_command(command: Sequence[str]) -> bool:
    """Whether SLURM has done it; False if the job had just ended.

    Raises:
        Refused: SLURM's own words on why not.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S)
    said = " ".join((done.stderr + done.stdout).split())
    if done.returncode and not TOO_LATE.search(said):
        raise Refused(f"`{' '.join(command)}`: {said}")
    return done.returncode == 0


class LocalWays:
    """Signals to the processes of a job on this machine; `job` is its controller's process id."""

    def __init__(self, launcher: Callable[[], int | None]) -> None:
        """`launcher` gives the process id of the launch command that is at work, if any."""
        self._launcher = launcher

    def aim(self, blow: Blow, job: str) -> Strike:
        """The signal to the ranks, or to the launch command."""
        if blow.what == "warned":  # as a scheduler does: every rank
            return lambda: send_all(children(int(job)), signal.SIGUSR2)
        if blow.what == "killed":
            return lambda: send_all(children(int(job))[:1], signal.SIGKILL)
        # as Ctrl-C, or a lost terminal
        number = signal.SIGTERM if blow.what == "terminated" else signal.SIGKILL
        launcher = self._launcher()
        return lambda: launcher is not None and send_all([launcher], number)


def send_all(pids: Sequence[int], number: int) -> bool:
    """Whether there were processes, and all got the signal."""
    try:
        for pid in pids:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    return bool(pids)


def children(pid: int) -> list[int]:
    """Processes started by a process; none if it is gone."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []

"""The warning before the end of a job (USR2): noted, acted on at a safe moment, never twice.

A job's command starts with USR2 ignored (see `LAUNCHER` in request.py), so a warning that comes before Python
is ready kills nothing.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from data_prep.errors import ClusterError
from slurm.place import Place

log = logging.getLogger(__name__)

WARNING = signal.SIGUSR2


class StopFlag:
    """Call it to learn whether this job was asked to stop; the handler only sets a flag.

    Helper processes that this one forks ignore the warning and can be terminated: where SLURM signals every
    process of a job, they would otherwise run this handler, or submitit's, too.
    """

    def __init__(self, at_once: Callable[[], object] | None = None) -> None:
        """`at_once` is called by the handler itself, for work that has no safe moment to wait for."""
        self.was_warned = False
        self.was_terminated = False
        self._expires_s = math.inf
        self._at_once = at_once
        self._pid = os.getpid()
        self.before = signal.signal(WARNING, self._note)
        os.register_at_fork(after_in_child=forget_signals)

    def note_termination(self) -> StopFlag:
        """Let TERM stop it too: scancel, scontrol requeue, preemption, Ctrl-C of a local launch."""
        signal.signal(signal.SIGTERM, self._note)
        return self

    def expire_at(self, moment_s: float) -> None:
        """Count as warned from this moment on (Unix seconds), for a warning may get lost."""
        self._expires_s = moment_s

    def __call__(self) -> bool:
        self.was_warned = self.was_warned or time.time() >= self._expires_s
        return self.was_warned or self.was_terminated

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self._pid:
            return
        if number == signal.SIGTERM:
            self.was_terminated = True
            return
        self.was_warned = True
        if self._at_once is not None:
            self._at_once()


def forget_signals() -> None:
    """For helper processes: ignore the warning, die when terminated."""
    signal.signal(WARNING, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ignore_warnings() -> None:
    """The last act of a job: a warning while Python shuts down would turn success into failure."""
    signal.signal(WARNING, signal.SIG_IGN)


def leave(place: Place, stop: StopFlag) -> NoReturn:
    """End a process that has stopped in the middle and saved all; after a warning, the job runs again.

    After TERM alone, unless that means preemption, it is for SLURM, or the user who cancelled the job, to
    decide what comes next.
    """
    # not warned, not terminated: then it was another rank
    if stop.was_warned or not stop.was_terminated or is_preempted(place):
        hand_over(place, stop.before)
    if place.cluster == "debug":
        raise KeyboardInterrupt
    if place.cluster == "slurm" and place.rank > 0:
        sys.exit(0)  # rank 0 may still have to hand over
    sys.exit(128 + signal.SIGTERM)


def is_preempted(place: Place) -> bool:
    """Whether SLURM ends this job to make room.

    Some sites send TERM then, and not the warning. SLURM requeues a job that it has to kill after the grace
    time, but takes one that ends before for failed.
    """
    if place.cluster != "slurm" or place.rank > 0:
        return False
    try:
        shown = subprocess.run(
            ["scontrol", "show", "job", place.job], capture_output=True, text=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return re.search(r"\bPreemptTime=\d", shown) is not None


def hand_over(place: Place, before: object) -> NoReturn:
    """End this process; rank 0 has the scheduler run the job again. Everything must be saved by now.

    `before` is the handler found at the start: submitit's if submitit runs the job, and it knows how to
    requeue; else the job was submitted by hand and is requeued here.
    """
    ignore_warnings()
    if place.cluster == "debug":
        raise KeyboardInterrupt
    if place.rank > 0:
        sys.exit(0)
    try:
        if callable(before):
            before(WARNING, None)  # checkpoint(), requeue, exit
        else:
            requeue(place.job)
    except (OSError, subprocess.SubprocessError) as error:
        ask_batch_script(place, error)
    sys.exit(1)  # the step must end now, whatever became of the request


def ask_batch_script(place: Place, error: Exception) -> None:
    """Have the job's script requeue it when this process cannot, as in a container without SLURM's programs.

    Raises:
        ClusterError: the job was submitted by hand, so its script is not ours.
    """
    if place.cluster != "slurm" or not (folder := os.environ.get("SUBMITIT_FOLDER")):
        raise ClusterError(f"job {place.job} could not be requeued: {error}", "submit it again; it goes on")
    log.info("cannot requeue from here (%s); the job's script will", error)
    Path(folder, f"{place.job}.requeue").touch()


def requeue(job: str) -> None:
    """Put this job, or this one element of an array, back into the queue."""
    subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)

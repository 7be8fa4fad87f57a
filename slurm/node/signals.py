"""Stop signals: USR2 (`sbatch --signal`) and TERM set a flag; the job saves at its next step and is requeued.

A job's command starts with USR2 ignored (see `LAUNCHER` in sbatch.py), so a stop signal that comes before
Python is ready kills nothing.
"""

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
from slurm import client
from slurm.node.environment import Backend, JobEnvironment

log = logging.getLogger(__name__)

STOP_SIGNAL = signal.SIGUSR2


class StopFlag:
    """Call it to learn whether this process was asked to stop; the signal handler only sets a flag.

    Processes that this one forks (data loaders, packers) ignore the stop signal and can be terminated: where
    SLURM signals every process of a job, they would otherwise run this handler, or submitit's, too.
    """

    def __init__(self, *others: signal.Signals, at_once: Callable[[], object] | None = None) -> None:
        """Catch the stop signal, and `others` such as TERM (scancel, requeue, preemption) or INT (Ctrl-C).

        `at_once` is called by the handler itself, for work that has no safe moment to wait for.
        """
        self.received: list[int] = []
        """The signals that have come, oldest first."""
        self.expires_s = math.inf
        """From this moment on (Unix seconds) it counts as signalled, for a signal may get lost."""
        self._at_once = at_once
        self._pid = os.getpid()
        self.previous_handler = signal.signal(STOP_SIGNAL, self._note)
        for number in others:
            signal.signal(number, self._note)
        os.register_at_fork(after_in_child=reset_signals_in_child)

    @property
    def was_signalled(self) -> bool:
        """The stop signal has come, or should have."""
        return STOP_SIGNAL in self.received or time.time() >= self.expires_s

    def __call__(self) -> bool:
        return bool(self.received) or self.was_signalled

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self._pid:
            return
        if number == signal.SIGINT in self.received:
            raise KeyboardInterrupt  # Ctrl-C twice: do not wait for the step to end
        self.received.append(number)
        if number == STOP_SIGNAL and self._at_once is not None:
            self._at_once()


def reset_signals_in_child() -> None:
    """For forked processes: ignore the stop signal, die when terminated."""
    signal.signal(STOP_SIGNAL, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ignore_stop_signal() -> None:
    """The last act of a job: USR2's default action would kill the exiting interpreter (exit code 140)."""
    signal.signal(STOP_SIGNAL, signal.SIG_IGN)


def exit_after_stop(job_env: JobEnvironment, stop: StopFlag) -> NoReturn:
    """End a process that has stopped in the middle and saved all; after a stop signal, the job runs again.

    After TERM alone, unless that means preemption, it is for SLURM, or the user who cancelled the job, to
    decide what comes next.
    """
    # neither signalled nor terminated: then it was another rank
    if stop.was_signalled or signal.SIGTERM not in stop.received or is_preempted(job_env):
        requeue_and_exit(job_env, stop.previous_handler)
    if job_env.backend is Backend.DEBUG:
        raise KeyboardInterrupt
    if job_env.backend is Backend.SLURM and job_env.rank > 0:
        sys.exit(0)  # rank 0 may still have to requeue
    sys.exit(128 + signal.SIGTERM)


def is_preempted(job_env: JobEnvironment) -> bool:
    """Whether SLURM ends this job to make room.

    Some sites send TERM then, and not the stop signal. SLURM requeues a job that it has to kill after the
    grace time, but takes one that ends before for failed.
    """
    can_ask = job_env.backend is Backend.SLURM and job_env.rank == 0
    return can_ask and re.search(r"\bPreemptTime=\d", client.show_job(job_env.job) or "") is not None


def requeue_and_exit(job_env: JobEnvironment, previous_handler: object) -> NoReturn:
    """End this process; rank 0 has the scheduler run the job again. Everything must be saved by now.

    `previous_handler` was there at the start: submitit's if submitit runs the job, and it knows how to
    requeue; else the job was submitted by hand and is requeued here.
    """
    ignore_stop_signal()
    if job_env.backend is Backend.DEBUG:
        raise KeyboardInterrupt
    if job_env.rank > 0:
        sys.exit(0)
    try:
        if callable(previous_handler):
            previous_handler(STOP_SIGNAL, None)  # checkpoint(), requeue, exit
        else:
            client.requeue(job_env.job)
    except (OSError, subprocess.SubprocessError, ClusterError) as error:
        # in a container without SLURM's programs the job's script can, if it is ours: not submitted by hand
        folder = os.environ.get("SUBMITIT_FOLDER")
        if job_env.backend is not Backend.SLURM or not folder:
            message = f"job {job_env.job} could not be requeued: {error}"
            raise ClusterError(message, "submit it again; it goes on") from error
        log.info("cannot requeue from here (%s); the job's script will", error)
        Path(folder, f"{job_env.job}.requeue").touch()
    sys.exit(1)  # the step must end now, whatever became of the request

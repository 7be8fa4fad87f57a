"""Stop signals: USR2 (`sbatch --signal`) and TERM set a flag, and the job saves at its next step.

A job's command starts with USR2 ignored (see `LAUNCHER` in sbatch.py), so a stop signal that comes before
Python is ready kills nothing.
"""

import math
import os
import signal
import time
from collections.abc import Callable

STOP_SIGNAL = signal.SIGUSR2


class StopFlag:
    """Call it to learn whether this process was asked to stop; the signal handler only sets a flag.

    Processes that this one forks (data loaders, packers) ignore the stop signal and can be terminated: where
    SLURM signals every process of a job, they would otherwise run this handler, or submitit's, too.
    """

    def __init__(self, *others: signal.Signals, at_once: Callable[[], object] | None = None) -> None:
        """Catch the stop signal and `others`, such as TERM or INT; the handler itself calls `at_once`."""
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

"""An input, what can be wrong with the answer to it, and the judge."""

import os
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn
from unittest import mock

from hypothesis.strategies import SearchStrategy
from tiny import REPOSITORY

from data_prep.errors import ToolkitError
from data_prep.json_records import Word

HANG_S = 10.0
OWN_FRAME = re.compile(rf'File "{REPOSITORY}/((?:data_prep|vae|slurm|jobs)/[^"]+)", line (\d+)')


class Fault(Word):
    """What can be wrong with the answer to an input."""

    TRACEBACK = "traceback"
    """An exception that nobody has turned into a clear line."""
    HANG = "hang"
    EXIT_CODE = "wrong exit code"
    CONTROL = "control characters"
    """That a terminal could take for a command, or show in another order."""
    ACCEPTED = "silent acceptance"
    """What was damaged or of a wrong kind is used as if it were not."""
    DEATH = "death"
    """Of the process, or of its memory limit."""


class Finding(Exception):
    """The answer to an input is wrong."""

    def __init__(self, fault: Fault, place: str, report: str = "") -> None:
        """`place` tells findings apart; `report` is all that is known."""
        super().__init__(fault, place, report)  # so that it can be sent to another process
        self.fault, self.place, self.report = fault, place, report

    def __str__(self) -> str:
        return f"{self.fault}: {self.place}"


@dataclass(frozen=True)
class Case:
    """One input: a file's bytes, and a name that says which file."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Bench:
    """Makes inputs of one kind and plays them: whatever `play` raises but an error of ours is a finding."""

    cases: SearchStrategy[Case]
    play: Callable[[Case], None]


class TooLong(BaseException):
    """Nothing may take this for an error of its own."""


def judge(bench: Bench, case: Case, limit_s: float = HANG_S) -> Finding | None:
    """Play a case; what is wrong with the answer, if anything. Only in the main thread of a process."""
    try:
        # no programs, SLURM's least of all
        with ended_after(limit_s), mock.patch.dict(os.environ, {"PATH": ""}):
            bench.play(case)
    except Finding as finding:
        return finding
    except TooLong:
        return Finding(Fault.HANG, f"more than {limit_s:g} s", traceback.format_exc())
    except ToolkitError:
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        return traceback_at(traceback.format_exc(), type(error).__name__)
    return None


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Raise TooLong if the block takes longer; code in C is not interrupted."""

    def ring(*_: object) -> NoReturn:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def traceback_at(report: str, kind: str = "") -> Finding:
    """A traceback, by its exception and the last line of our own that it went through."""
    places = [":".join(found) for found in OWN_FRAME.findall(report)]
    kind = kind or re.findall(r"^(?:\w+\.)*(\w+)(?:: |$)", report, re.MULTILINE)[-1]
    return Finding(Fault.TRACEBACK, f"{(places or ['elsewhere'])[-1]}: {kind}", report)

"""Folders to play in, and front doors to knock at from there."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn
from unittest import mock

from doors import Result, run_door
from tiny import REPOSITORY

from fuzzing.inputs import Case, Fault, Finding, traceback_at

ODD_CHARACTER = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def knock(door: str, *argv: str | Path, cwd: Path = REPOSITORY) -> Result:
    """Run a front door in this process; a Finding if it ends, or says anything, as no door may."""
    no_signals = mock.patch("slurm.local.send_signal", refuse_signals)
    with no_signals, mock.patch("time.sleep", lose_patience):
        result = run_door(door, *argv, cwd=cwd)
    if "Traceback (most recent call last)" in result.stderr:
        raise traceback_at(result.stderr)
    if ODD_CHARACTER.search(result.stdout + result.stderr):
        raise Finding(Fault.CONTROL, f"jobs/{door}.py prints them", result.stdout + result.stderr)
    try:
        result.stdout.encode()
    except UnicodeEncodeError as error:  # as printing it would
        raise Finding(Fault.TRACEBACK, f"jobs/{door}.py prints no UTF-8", result.stdout) from error
    if result.returncode not in (0, 1, 2):
        raise Finding(Fault.EXIT_CODE, f"jobs/{door}.py ends with {result.returncode}", result.stderr)
    return result


def refuse_signals(pids: list[int], number: int) -> NoReturn:
    """Nothing that is played may end a process."""
    raise Finding(Fault.ACCEPTED, f"signal {number} to {len(pids)} processes, which an input has named")


def lose_patience(seconds: float) -> NoReturn:
    """Where a command would wait and look again, its user leaves."""
    if not 0 <= seconds < 1 << 32:
        raise OverflowError(f"time.sleep({seconds})")
    raise KeyboardInterrupt


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In that folder, until the block ends."""
    home = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(home)


class Place:
    """A folder that is put back as it was after each case."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = self._read()

    def _read(self) -> dict[str, bytes]:
        paths = [path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink()]
        return {str(path.relative_to(self.path)): path.read_bytes() for path in sorted(paths)}

    @contextmanager
    def holding(self, *cases: Case) -> Iterator[None]:
        """The folder with the files of these cases in it, until the block ends."""
        try:
            for case in cases:
                (self.path / case.name).write_bytes(case.content)
            yield
        finally:
            now = self._read()
            for name in now.keys() - self.files.keys():
                (self.path / name).unlink()
            for name in [name for name, content in self.files.items() if now.get(name) != content]:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).write_bytes(self.files[name])

"""The front doors, called in this process: as fast as a function, with what a terminal would show.

What needs a process of its own (signals, kills, what is imported) starts one.
"""

import importlib.util
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

from tiny import REPOSITORY

DOORS = REPOSITORY / "jobs"
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code, its answers and its talk."""

    returncode: int
    stdout: str
    stderr: str


def run_door(name: str, *argv: str | Path, cwd: Path = REPOSITORY) -> Result:
    """Run `python jobs/NAME.py ARGV...` in this process, from the folder `cwd`."""
    stdout, stderr = io.StringIO(), io.StringIO()
    returncode = 0
    with like_a_process(name, argv, cwd), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            import _front

            _front.run(load_door(name).main)
        except SystemExit as end:
            returncode = int(end.code or 0)
        except Exception:  # what nobody has turned into a line
            traceback.print_exc()
            returncode = 1
    return Result(returncode, stdout.getvalue(), stderr.getvalue())


def load_door(name: str) -> ModuleType:
    """jobs/NAME.py as a module of its own, loaded anew."""
    spec = importlib.util.spec_from_file_location(f"door_{name}", DOORS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@contextmanager
def like_a_process(name: str, argv: tuple[str | Path, ...], cwd: Path) -> Iterator[None]:
    """Arguments, folder, import path, environment, log and signal handlers of a new process; then ours."""
    root, home = logging.getLogger(), Path.cwd()
    handlers, level = root.handlers, root.level
    actions = {number: signal.getsignal(number) for number in SIGNALS}  # a door may set its own
    root.handlers = []
    os.chdir(cwd)
    try:
        with (
            mock.patch.object(sys, "argv", [str(DOORS / f"{name}.py"), *map(str, argv)]),
            mock.patch.object(sys, "path", [str(DOORS), *sys.path]),
            mock.patch.dict(os.environ),
        ):
            yield
    finally:
        os.chdir(home)
        root.handlers = handlers
        root.setLevel(level)
        for number, action in actions.items():
            signal.signal(number, action)

"""The decoder's workers: small, and gone when one of them or their leader dies."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from pictures import kaggle
from tiny import REPOSITORY, child_environment


def test_workers_stay_small(tmp_path: Path) -> None:
    """The workers load neither torch nor matplotlib, so that a node can run one per core."""
    code = "import sys, data_prep.packer; print({'torch', 'matplotlib', 'pydicom'} & set(sys.modules) or [])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_killed_worker_is_an_error_and_no_hang(tmp_path: Path) -> None:
    """The out-of-memory killer takes a worker: here, the first child that appears."""
    source, out = kaggle(tmp_path / "source"), tmp_path / "shards"
    command = [sys.executable, "jobs/pack.py", str(source), str(out), "--size", "32", "--workers", "2"]
    child = subprocess.Popen(
        command, cwd=REPOSITORY, env=child_environment(), stderr=subprocess.PIPE, text=True
    )
    workers: list[int] = []
    while not workers:
        assert child.poll() is None
        workers = workers_of(child.pid)
    os.kill(workers[0], signal.SIGKILL)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 2, stderr
    assert "a worker process died" in stderr
    assert "Traceback" not in stderr


def test_workers_end_with_the_packer(tmp_path: Path) -> None:
    """Only the packer is killed; its workers must not wait for work for ever."""
    command = [
        sys.executable,
        "jobs/pack.py",
        "phantom:2000",
        str(tmp_path),
        "--size",
        "256",
        "--workers",
        "2",
    ]
    child = subprocess.Popen(command, cwd=REPOSITORY, env=child_environment(), stderr=subprocess.DEVNULL)
    workers: list[int] = []
    while len(workers) < 2:
        assert child.poll() is None
        workers = workers_of(child.pid)
    child.kill()
    child.wait()
    give_up = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def workers_of(pid: int) -> list[int]:
    """Process ids of the workers that a packer has started so far."""
    workers = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):  # each is started by a thread of its own
        with suppress(OSError):  # it has ended meanwhile
            children = listing.read_text().split()
            workers += [int(child) for child in children if b"spawn_main" in command_of(child)]
    return workers


def command_of(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()

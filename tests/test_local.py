"""slurm/local.py: the jobs of a plan as processes of this machine, in order, and how they are ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from submitit.core.utils import JobPaths

from data_prep.errors import ClusterError
from slurm import local
from slurm.job_records import JobRecord, read_records
from slurm.local import is_running_here, run_debug, run_local, visible_gpus
from slurm.node.environment import Backend, JobEnvironment
from slurm.node.task import JobKind, Task
from slurm.plan import JobRequest, Resources

STUDY = Path("/shared/runs/chest")
TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Note(Task):
    """Writes down who it is; fails if its folder is called bad."""

    def work(self, job_env: JobEnvironment) -> None:
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        if folder.name == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / f"rank-{job_env.rank}-of-{job_env.world_size}").write_text(
            os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        )
        if folder.name == "bad":
            raise ValueError("bad folder\nwith a second line")
        if folder.name in ("slow", "deaf"):
            time.sleep(60)


def plan(folder: Path, *names: str, gpus: int = 1) -> list[JobRequest]:
    """A training array, an evaluation array after it, and a report after that."""
    train = {i: Note(str(folder / "train" / name)) for i, name in enumerate(names)}
    score = {i: Note(str(folder / "score" / name)) for i, name in enumerate(names)}
    resources = Resources(gpus)
    return [
        JobRequest("train", JobKind.TRAIN, folder, train, resources=resources),
        JobRequest("evaluate", JobKind.EVALUATE, folder, score, ("aftercorr:train",), resources=resources),
        JobRequest(
            "report", JobKind.REPORT, folder, {0: Note(str(folder / "report"))}, ("afterany:evaluate",), False
        ),
    ]


def watch_nothing(request: JobRequest, index: int) -> None:
    """Say nothing while local jobs run."""


def test_debug_runs_everything_here_in_order(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    run_debug(plan(tmp_path, "a", "b"))
    signal.signal(signal.SIGUSR2, before)  # the last act of a job is to ignore it
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("rank*")) == [
        "report/rank-0-of-1",
        "score/a/rank-0-of-1",
        "score/b/rank-0-of-1",
        "train/a/rank-0-of-1",
        "train/b/rank-0-of-1",
    ]


def test_local_runs_one_process_per_gpu_and_blocks_only_what_depends_on_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,8")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # so that the jobs find this module
    reasons = run_local(plan(tmp_path, "bad", "good", gpus=2), TESTS.parent, watch_nothing)
    assert len(reasons) == 1
    assert reasons[0].startswith("train bad: ")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("rank*")) == [
        "report/rank-0-of-1",
        "score/good/rank-0-of-2",
        "score/good/rank-1-of-2",
        "train/bad/rank-0-of-2",
        "train/bad/rank-1-of-2",
        "train/good/rank-0-of-2",
        "train/good/rank-1-of-2",
    ]
    assert (tmp_path / "train" / "good" / "rank-1-of-2").read_text() == "5,7"
    assert [record.kind for record in read_records(tmp_path)] == ["train", "train", "evaluate", "report"]


def test_an_interrupted_local_launch_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # so that the jobs find this module

    def interrupt(request: JobRequest, index: int) -> None:
        if (tmp_path / "train" / "slow" / "rank-1-of-2").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(plan(tmp_path, "slow", gpus=2), TESTS.parent, interrupt)
    assert processes_of(tmp_path) == []
    assert [record.end for record in read_records(tmp_path)] == ["interrupted"]


def test_a_job_that_does_not_end_is_killed_with_its_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(local, "SAVE_LIMIT_S", 2.0)

    def interrupt(request: JobRequest, index: int) -> None:
        if (tmp_path / "train" / "deaf" / "rank-1-of-2").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(plan(tmp_path, "deaf", gpus=2), TESTS.parent, interrupt)
    give_up = time.monotonic() + 10
    while processes_of(tmp_path) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert processes_of(tmp_path) == []


def processes_of(folder: Path) -> list[Path]:
    """The processes that work on the jobs of a folder."""
    mark = str(folder / "jobs").encode()
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if mark in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_visible_gpus_stay_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    request = plan(STUDY, "x", gpus=2)[0]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(request) == {"gpus_per_node": 2}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(request) == {"gpus_per_node": 0}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,2")
    assert visible_gpus(request) == {"gpus_per_node": 2, "visible_gpus": [3, 1, 2]}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ClusterError, match="--gpus 2, but CUDA_VISIBLE_DEVICES=3"):
        visible_gpus(request)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f3c")
    with pytest.raises(ClusterError, match="cannot be passed on"):
        visible_gpus(request)


def test_names_that_submitit_gives_to_logs_end_as_they_are_looked_for() -> None:
    assert JobPaths(STUDY, "4711", 1).stdout.name == f"4711_1{local.LOG_ENDING}"


# --- processes -----------------------------------------------------------------------------------

# A process that says when it listens, and on TERM ends, or does not.
ENDS = "import signal, time; print('ready', flush=True); time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {ENDS}"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ENDS!r}])"


def start(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_process_is_asked_to_end_and_waited_for() -> None:
    process = start(ENDS)
    assert local.is_alive(process.pid)
    local.end_job(process.pid, with_launcher=False)
    assert not local.is_alive(process.pid)  # though nobody has reaped it
    assert process.wait() == -signal.SIGTERM
    assert not local.is_alive(process.pid)
    local.end_job(process.pid, with_launcher=True)  # it has ended: there is nothing to do


def test_a_process_that_does_not_end_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "END_LIMIT_S", 0.5)
    process = start(DEAF)
    with pytest.raises(ClusterError, match=f"process {process.pid} does not end") as caught:
        local.end_job(process.pid, with_launcher=False)
    assert caught.value.hint == f"kill -9 {process.pid}"
    process.kill()
    process.communicate()


def test_a_launcher_is_asked_in_place_of_its_job_and_once(tmp_path: Path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        f"job = subprocess.Popen([sys.executable, '-c', {ENDS!r}])\n"
        "try:\n    print(job.pid, flush=True)\n    job.wait()\n"
        "except KeyboardInterrupt:\n    job.kill()\n    job.wait()\n    sys.exit(130)\n"
    )
    launcher = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    job = int(launcher.stdout.readline())
    assert local.launcher_of(job) == launcher.pid
    local.end_job(job, with_launcher=True)
    assert launcher.wait() == 130
    assert not local.is_alive(job)


def test_the_ranks_of_a_job_are_found_and_signalled() -> None:
    process = start(f"{PARENT}  # submitit")
    (rank,) = local.ranks_of(process.pid)
    assert local.ranks_of(rank) == []  # it is no controller, though alive
    assert local.launcher_of(rank) is None  # and has not been launched by one
    assert local.send_signal([rank], signal.SIGKILL)
    process.communicate()
    assert local.ranks_of(process.pid) == []
    assert not local.send_signal([rank], signal.SIGKILL)
    assert not local.send_signal([], signal.SIGKILL)


def test_only_a_job_of_submitit_on_this_machine_is_running_here() -> None:
    def record(pid: int, host: str) -> JobRecord:
        return JobRecord(str(pid), JobKind.TRAIN, Backend.LOCAL, False, (0,), host)

    process = start(f"{ENDS}  # submitit")
    assert is_running_here(record(process.pid, socket.gethostname()))
    assert not is_running_here(record(process.pid, "elsewhere"))
    assert not is_running_here(record(os.getpid(), socket.gethostname()))  # alive, but no job
    process.kill()
    process.communicate()
    assert not is_running_here(record(process.pid, socket.gethostname()))

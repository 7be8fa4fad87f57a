"""Runs jobs as processes of this machine, one after another, without a scheduler."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from data_prep.errors import ClusterError
from slurm.client import clean_environment
from slurm.job_records import JobRecord, add_record, note_end, read_records
from slurm.node.environment import Backend, single_process
from slurm.plan import JobRequest
from vae.run_dir import JOBS_DIR

# submitit would give up after a few time limits; our own rule is progress (task.refuse_idle_restarts).
UNLIMITED_RESTARTS = 1_000_000

LOCAL_LIMIT_MIN = 365 * 24 * 60
LOCAL_POLL_S = 0.3
LOCAL_END_S = 60.0


Watch = Callable[[JobRequest, int], None]


def run_local(requests: Sequence[JobRequest], code_dir: Path, watch: Watch) -> list[str]:
    """Run the requests here, one element after another, one process per GPU; returns what failed.

    An element is skipped if the one it waits for failed; the report always comes. `watch` is called now and
    then with what is running. Ctrl-C ends the processes.
    """
    return _run_in_order(requests, lambda request, index: run_array_task(request, index, code_dir, watch))


def run_debug(requests: Sequence[JobRequest]) -> list[str]:
    """Run the requests in this very process, one after another; an error is raised where it happens."""

    def act(request: JobRequest, index: int) -> str:
        request.tasks[index](single_process())
        return ""

    return _run_in_order(requests, act)


def _run_in_order(requests: Sequence[JobRequest], act: Callable[[JobRequest, int], str]) -> list[str]:
    failed: set[tuple[str, int]] = set()
    reasons: list[str] = []
    for request in requests:
        for index in request.tasks:
            if _is_blocked(request, index, failed):
                failed.add((request.key, index))
                continue
            if reason := act(request, index):
                failed.add((request.key, index))
                reasons.append(reason)
    return reasons


def _is_blocked(request: JobRequest, index: int, failed: set[tuple[str, int]]) -> bool:
    """What SLURM's dependencies say, for jobs that run one after another."""
    for after in request.after:
        condition, key = after.split(":", 1)
        if condition == "afterok" and any(key == failed_key for failed_key, _ in failed):
            return True
        if condition == "aftercorr" and (key, index) in failed:
            return True
    return False


def run_array_task(request: JobRequest, index: int, code_dir: Path, watch: Watch) -> str:
    """Run one element in processes of its own; returns why it failed, or nothing."""
    from submitit import LocalExecutor

    jobs_dir = request.folder / JOBS_DIR
    processes = request.resources.gpus_per_node if request.resources else 1
    with _at_home(code_dir), _without_ctrl_c():
        executor = LocalExecutor(jobs_dir, max_num_timeout=UNLIMITED_RESTARTS)
        executor.update_parameters(
            timeout_min=LOCAL_LIMIT_MIN,
            tasks_per_node=processes,
            stderr_to_stdout=True,
            **visible_gpus(request),
        )
        job = executor.submit(request.tasks[index])
    # this element's record alone: the others have processes of their own
    add_record(request.folder, replace(JobRecord.of(request, job.job_id, Backend.LOCAL), indices=(index,)))
    try:
        while not job.done():
            watch(request, index)
            time.sleep(LOCAL_POLL_S)
    except BaseException:
        note_end(request.folder, job.job_id, "interrupted")
        end_processes(job._process)  # type: ignore[attr-defined]  # submitit's cancel() saves nothing
        raise
    if has_succeeded(jobs_dir, job.job_id, processes):
        return ""
    return failure(request, index, jobs_dir, job.job_id)


def end_processes(controller: subprocess.Popen[bytes]) -> None:
    """Let a local job's processes save and end; kill them if they do not.

    The controller passes TERM on. It is sent again and again, for processes that are just starting miss it.
    """
    give_up = time.monotonic() + LOCAL_END_S
    while controller.poll() is None and time.monotonic() < give_up:
        controller.terminate()
        with suppress(subprocess.TimeoutExpired):
            controller.wait(1)
    if controller.poll() is None:
        children = Path(f"/proc/{controller.pid}/task/{controller.pid}/children").read_text().split()
        controller.kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)


def has_succeeded(jobs_dir: Path, job: str, processes: int) -> bool:
    """Whether every process of a local job ended well."""
    from submitit.core.utils import pickle_load

    results = [jobs_dir / f"{job}_{rank}_result.pkl" for rank in range(processes)]
    return all(path.exists() and pickle_load(path)[0] == "success" for path in results)


def failure(request: JobRequest, index: int, jobs_dir: Path, job: str) -> str:
    """One line on why a local job failed: the last line of its error, and where to read on."""
    from submitit.core.utils import pickle_load

    name = f"{request.kind} {Path(request.tasks[index].path).name}"
    if end := next((record.end for record in read_records(request.folder) if record.id == job), ""):
        return f"{name} was {end}"
    for path in sorted(jobs_dir.glob(f"{job}_*_result.pkl")):
        outcome, value = pickle_load(path)
        if outcome == "error":
            return f"{name}: {str(value).strip().splitlines()[-1]}"
    return f"{name} was killed; see {jobs_dir}/{job}_0_log.out"


def visible_gpus(request: JobRequest) -> dict[str, object]:
    """submitit's parameters that leave CUDA_VISIBLE_DEVICES as the user set it; it would number from 0.

    Raises:
        ClusterError: the variable names GPUs in a way that cannot be passed on.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = request.resources.gpus_per_node if request.resources else 0
    if given is None or wanted == 0:
        return {"gpus_per_node": wanted}
    if not re.fullmatch(r"(\d+(,\d+)*)?", given):
        raise ClusterError(f"CUDA_VISIBLE_DEVICES={given} cannot be passed on", "name the GPUs by number")
    numbers = [int(number) for number in given.split(",") if number]
    if not numbers:  # the user wants the CPU
        return {"gpus_per_node": 0}
    if len(numbers) < wanted:
        raise ClusterError(f"--gpus {wanted}, but CUDA_VISIBLE_DEVICES={given}", "make more GPUs visible")
    return {"gpus_per_node": wanted, "visible_gpus": numbers}


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started in here ignore the terminal's Ctrl-C: the launcher ends them, and lets them save."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _at_home(code_dir: Path) -> Iterator[None]:
    """Processes started in here run the code in `code_dir`, and inherit nothing of a job around us."""
    environment, folder = dict(os.environ), Path.cwd()
    others = os.environ.get("PYTHONPATH")
    wanted = clean_environment() | {"PYTHONPATH": f"{code_dir}:{others}" if others else str(code_dir)}
    os.environ.clear()
    os.environ.update(wanted)
    os.chdir(code_dir)  # where Python looks first
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)


def is_running_here(record: JobRecord) -> bool:
    """Whether a local job's controlling process is alive on this machine."""
    if record.host != socket.gethostname():
        return False
    try:
        return b"submitit" in Path(f"/proc/{record.id}/cmdline").read_bytes()
    except OSError:
        return False


def end_local(pid: int, with_launcher: bool) -> None:
    """Ask a local job's process to save and end, and wait for that; with its launcher, nothing follows it.

    Asked again and again: processes that are just starting miss it.

    Raises:
        ClusterError: it does not end.
    """
    launcher = launcher_of(pid) if with_launcher else None
    if launcher is not None:
        with suppress(ProcessLookupError):
            os.kill(launcher, signal.SIGTERM)  # ends its job as Ctrl-C does
    give_up = time.monotonic() + LOCAL_END_S
    for _ in ticks(give_up):
        if launcher is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not any(map(is_alive, (pid, launcher))):
            return
    raise ClusterError(f"process {pid} does not end", f"kill -9 {pid}")


def ticks(give_up: float) -> Iterator[None]:
    """One step a second until `give_up`, in the time of the monotonic clock."""
    while time.monotonic() < give_up:
        yield
        time.sleep(1)


def is_alive(pid: int | None) -> bool:
    """Whether a process exists and is no zombie."""
    return pid is not None and (words := stat_of(pid)) is not None and words[0] != "Z"


def launcher_of(pid: int) -> int | None:
    """The `jobs/launch.py` that started a local job; None if it is gone."""
    words = stat_of(pid)
    if words is None:
        return None
    with suppress(OSError):
        if b"launch.py" in Path(f"/proc/{words[1]}/cmdline").read_bytes():
            return int(words[1])
    return None


def stat_of(pid: int) -> list[str] | None:
    """State, parent, ... of a process, from /proc; None without it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None

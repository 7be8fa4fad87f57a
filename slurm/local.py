"""Runs jobs as processes of this machine, one after another, without a scheduler."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from data_prep.errors import ClusterError
from slurm.client import clean_environment
from slurm.job_records import JobRecord, add_record, note_end, read_records
from slurm.node.environment import Backend, single_process
from slurm.plan import JobRequest
from slurm.private_folder import check_private, make_private
from vae.run_dir import JOBS_DIR

# submitit would give up after a few time limits; our own rule is progress (task.refuse_idle_restarts).
UNLIMITED_RESTARTS = 1_000_000
LOCAL_LIMIT_MIN = 365 * 24 * 60
# How submitit's `JobPaths.stdout` ends, after `<job>_<rank>`; importing submitit takes too long for `status`.
LOG_ENDING = "_log.out"

POLL_S = 0.3
# A job that is asked to end saves first; after this long its launcher kills it.
SAVE_LIMIT_S = 60.0
# Who ends a job from outside waits a little longer than its launcher does.
END_LIMIT_S = SAVE_LIMIT_S + 10.0
# How often one looks whether a process has ended, and asks it again: one that is just starting misses it.
LOOK_EVERY_S, LOOKS_PER_ASK = 0.1, 10

Watch = Callable[[JobRequest, int], None]


def run_local(requests: Sequence[JobRequest], code_dir: Path, watch: Watch) -> list[str]:
    """Run the requests here, one array task after another, one process per GPU; returns what failed.

    One that waits for another which failed is skipped; the report always comes. `watch` is called now and
    then with what is running. Ctrl-C ends the processes.
    """
    reasons: list[str] = []
    unmet: set[tuple[str, int | None]] = set()  # dependencies, each of one index or (None) of every one
    for request in requests:
        for index in request.tasks:
            is_blocked = any({(after, index), (after, None)} & unmet for after in request.after)
            reason = "" if is_blocked else run_array_task(request, index, code_dir, watch)
            if reason:
                reasons.append(reason)
            if reason or is_blocked:
                unmet |= {(f"aftercorr:{request.key}", index), (f"afterok:{request.key}", None)}
    return reasons


def run_debug(requests: Sequence[JobRequest]) -> None:
    """Run the requests in this very process, one after another; an error is raised where it happens."""
    for request in requests:
        for task in request.tasks.values():
            task(single_process())


def run_array_task(request: JobRequest, index: int, code_dir: Path, watch: Watch) -> str:
    """Run one array task in processes of its own; returns why it failed, or nothing."""
    from submitit import LocalExecutor

    # submitit starts a controller, which starts a process for each rank; its process id is the job's
    num_ranks = request.resources.gpus_per_node if request.resources else 1
    limits = {"timeout_min": LOCAL_LIMIT_MIN, "tasks_per_node": num_ranks, **visible_gpus(request)}
    jobs_dir = make_private(request.folder / JOBS_DIR)
    with _set_apart(code_dir):
        executor = LocalExecutor(jobs_dir, max_num_timeout=UNLIMITED_RESTARTS)
        executor.update_parameters(stderr_to_stdout=True, **limits)
        job = executor.submit(request.tasks[index])
    # this array task's record alone: the others have processes of their own
    record = JobRecord.of(request, job.job_id, Backend.LOCAL)
    add_record(request.folder, msgspec.structs.replace(record, indices=(index,)))
    try:
        while not job.done():
            watch(request, index)
            time.sleep(POLL_S)
    except BaseException:
        note_end(request.folder, job.job_id, "interrupted")
        end_or_kill(int(job.job_id))  # submitit's cancel() saves nothing
        raise
    return failure(request, index, job.job_id, num_ranks)


def failure(request: JobRequest, index: int, job: str, num_ranks: int) -> str:
    """One line on why a local job failed: the last line of its error, and where to read on; or nothing."""
    from submitit.core.utils import JobPaths, pickle_load

    jobs_dir = check_private(request.folder / JOBS_DIR)  # it is about to unpickle there
    paths = [JobPaths(jobs_dir, job, rank) for rank in range(num_ranks)]
    outcomes = [pickle_load(path.result_pickle) for path in paths if path.result_pickle.exists()]
    if [outcome for outcome, _ in outcomes] == ["success"] * num_ranks:
        return ""
    name = f"{request.kind} {Path(request.tasks[index].path).name}"
    ends = {record.id: record.end for record in read_records(request.folder)}
    if ends.get(job):
        return f"{name} was {ends[job]}"
    for outcome, value in outcomes:
        if outcome == "error":
            return f"{name}: {str(value).strip().splitlines()[-1]}"
    return f"{name} was killed; see {paths[0].stdout}"


def visible_gpus(request: JobRequest) -> dict[str, object]:
    """submitit's parameters that leave CUDA_VISIBLE_DEVICES alone, or ClusterError; it numbers from 0."""
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
def _set_apart(code_dir: Path) -> Iterator[None]:
    """Processes started in here run the code in `code_dir`, and inherit nothing of a job around us."""
    environment, folder = dict(os.environ), Path.cwd()
    others = os.environ.get("PYTHONPATH")
    wanted = clean_environment() | {"PYTHONPATH": f"{code_dir}:{others}" if others else str(code_dir)}
    os.environ.clear()
    os.environ.update(wanted)
    os.chdir(code_dir)  # where Python looks first
    on_ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher ends them, and lets them save
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, on_ctrl_c)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)


# --- processes of this machine ---------------------------------------------------------------------


def is_running_here(record: JobRecord) -> bool:
    """Whether a local job's controlling process is alive on this machine."""
    return record.host == socket.gethostname() and is_controller(record.id)


def is_controller(pid: int | str) -> bool:
    """Whether a process controls a local job, which has its id."""
    return b"submitit" in _proc(pid, "cmdline")


def ranks_of(controller: int) -> list[int]:
    """Processes that the controller of a local job has started; none if it is gone."""
    ranks = _proc(controller, f"task/{controller}/children") if is_controller(controller) else b""
    return [int(rank) for rank in ranks.split()]


def end_job(pid: int, with_launcher: bool) -> None:
    """Have a local job's process save and end; with its launcher, nothing follows it. ClusterError if not."""
    launcher = launcher_of(pid) if with_launcher else None
    if launcher is None:
        has_ended = end_in_time([pid], END_LIMIT_S, ask=pid)
    else:
        send_signal([launcher], signal.SIGTERM)  # once: it ends its job as at Ctrl-C
        has_ended = end_in_time([pid, launcher], END_LIMIT_S)
    if not has_ended:
        raise ClusterError(f"process {pid} does not end", f"kill -9 {pid}")


def end_or_kill(pid: int) -> None:
    """Have a job of this very process save and end; kill it and its ranks if it does not."""
    if not end_in_time([pid], SAVE_LIMIT_S, ask=pid):
        ranks = ranks_of(pid)
        send_signal([pid], signal.SIGKILL)
        send_signal(ranks, signal.SIGKILL)


def end_in_time(pids: Sequence[int], limit_s: float, ask: int | None = None) -> bool:
    """Whether all these processes end; one of them may be asked to, again and again."""
    for look in range(round(limit_s / LOOK_EVERY_S)):
        if not any(map(is_alive, pids)):
            return True
        if ask is not None and look % LOOKS_PER_ASK == 0:
            send_signal([ask], signal.SIGTERM)
        time.sleep(LOOK_EVERY_S)
    return not any(map(is_alive, pids))


def send_signal(pids: Sequence[int], number: signal.Signals) -> bool:
    """Whether there were processes, and all got the signal."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
    return bool(pids)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return _stat(pid)[:1] not in ([], [b"Z"])


def launcher_of(pid: int) -> int | None:
    """The `jobs/launch.py` that started a local job; None if it is gone."""
    parent = int(next(iter(_stat(pid)[1:2]), 0))
    return parent if b"launch.py" in _proc(parent, "cmdline") else None


def _stat(pid: int) -> list[bytes]:
    """State, parent, ... of a process; nothing if it is gone."""
    return _proc(pid, "stat").rpartition(b")")[2].split()  # its name, in brackets, may hold anything


def _proc(pid: int | str, name: str) -> bytes:
    """What /proc says of a process; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""

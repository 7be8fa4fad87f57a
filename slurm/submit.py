"""Acts on job requests: hands them to SLURM, to processes on this machine, or to this process.

submitit gives the pickle on disk, the process that runs it on the node, and the requeue; the script for
sbatch is ours (`request.sbatch_text`), so a dry run shows exactly what would be submitted.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from data_prep.errors import ClusterError
from data_prep.files import write_text
from slurm.place import Cluster, alone, clean_environment
from slurm.profile import ClusterProfile
from slurm.request import JOBS_DIR, MAX_ARRAY_SIZE, JobRequest, limit_min, sbatch_text
from slurm.state import JobRecord, add_record, note_end, read_records
from slurm.task import Task

log = logging.getLogger(__name__)

PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel")

# submitit would give up after a few time limits; our own rule is progress (task.refuse_idle_restarts).
UNLIMITED_RESTARTS = 1_000_000

LOCAL_LIMIT_MIN = 365 * 24 * 60
LOCAL_POLL_S = 0.3
LOCAL_END_S = 60.0
SBATCH_LIMIT_S = 120


# --- SLURM -----------------------------------------------------------------------------------


def choose_cluster(asked: Cluster | Literal["auto"], has_profile: bool) -> Cluster:
    """Where to run. `auto` takes SLURM where it is installed, and for a profile, which is about SLURM.

    It does not ask whether SLURM answers: while its controller is down, nothing may begin on a login node.
    """
    if asked != "auto":
        return asked
    return "slurm" if has_profile or has_programs() else "local"


def has_programs() -> bool:
    """Whether SLURM is installed here."""
    return shutil.which("sbatch") is not None


def require_slurm() -> None:
    """Raise ClusterError unless SLURM's programs are here and its controller is up."""
    missing = missing_programs()
    if missing or not slurm_answers():
        why = f"{', '.join(missing)} not in PATH" if missing else "its controller is not reached"
        hint = "try again later, or from a login node; --cluster local runs on this machine"
        raise ClusterError(f"no SLURM answers here: {why}", hint)


def missing_programs() -> list[str]:
    """SLURM's programs that the toolkit cannot do without and that are not on this machine."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def slurm_answers() -> bool:
    """Whether this machine can submit to a SLURM whose controller is up."""
    if missing_programs():
        return False
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return ping.returncode == 0 and " UP" in ping.stdout


def max_array_size() -> int:
    """SLURM's bound on array indices; its usual one if it does not tell."""
    try:
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return MAX_ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown.stdout, re.M)
    return max(1, int(found[1])) if found else MAX_ARRAY_SIZE


def script(request: JobRequest, profile: ClusterProfile, code_dir: Path) -> str:
    """The exact text that `submit` gives to sbatch; the job runs the code in `code_dir`."""
    return sbatch_text(request, profile, code_dir, profile.python or sys.executable)


def sbatch_command(request: JobRequest, ids: dict[str, str]) -> list[str]:
    """The sbatch call; `ids` gives the job id of each key of the plan that is already submitted."""
    waits = []
    for after in request.after:
        condition, target = after.split(":", 1)
        waits.append(f"{condition}:{ids.get(target, target)}")
    return ["sbatch", "--parsable", *([f"--dependency={','.join(waits)}"] if waits else [])]


def check_accepted(request: JobRequest, profile: ClusterProfile, code_dir: Path) -> None:
    """Have SLURM check the script without submitting it.

    Raises:
        ClusterError: SLURM's own words on what it does not accept.
    """
    _sbatch(["sbatch", "--test-only"], script(request, profile, code_dir), request)


def submit(requests: Sequence[JobRequest], profile: ClusterProfile, code_dir: Path) -> dict[str, str]:
    """Submit the requests in order; returns the job id of each key. Each is recorded as soon as it is queued.

    Raises:
        ClusterError: sbatch refused one; those before it stay queued, and launching again adds the rest.
    """
    if ignored := sorted(name for name in os.environ if name.startswith("SBATCH_")):
        log.warning("not passed on: %s; put such settings into a cluster profile", ", ".join(ignored))
    ids: dict[str, str] = {}
    for request in requests:
        ids[request.key] = submit_one(request, profile, code_dir, ids)
        log.info("submitted %s: job %s", request.name, ids[request.key])
    return ids


def submit_one(request: JobRequest, profile: ClusterProfile, code_dir: Path, ids: dict[str, str]) -> str:
    """Queue one job or array, record it, and put the pickles where its elements look for them."""
    jobs_dir = request.folder / JOBS_DIR
    jobs_dir.mkdir(parents=True, exist_ok=True)
    limit = limit_min(request.kind, profile)
    pickles = {index: write_pickle(jobs_dir, task, limit) for index, task in request.tasks.items()}
    text = script(request, profile, code_dir)
    try:
        answer = _sbatch(sbatch_command(request, ids), text, request)
    except ClusterError:
        for path in pickles.values():
            path.unlink()
        raise
    job = answer.strip().split(";")[0]  # `--parsable` may add the cluster's name
    record = JobRecord.of(request, job, "slurm")
    add_record(request.folder, record)
    for index, path in pickles.items():
        path.rename(jobs_dir / f"{record.element(index)}_submitted.pkl")
    write_text(jobs_dir / f"{job}.sbatch", text)
    return job


def write_pickle(jobs_dir: Path, task: Task, limit: int) -> Path:
    """Write what submitit's process on the node will load, under a name of its own."""
    from submitit.core.utils import DelayedSubmission

    delayed = DelayedSubmission(task)
    delayed.set_timeout(limit, UNLIMITED_RESTARTS)
    path = jobs_dir / f"{uuid.uuid4().hex}.pkl"
    delayed.dump(path)
    return path


def _sbatch(command: list[str], text: str, request: JobRequest) -> str:
    try:
        asked = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            env=clean_environment(),
            timeout=SBATCH_LIMIT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ClusterError(f"sbatch could not be asked for {request.name}: {error}") from error
    if asked.returncode != 0:
        reason = " ".join(asked.stderr.replace("sbatch: ", "").replace("error: ", "").split())
        raise ClusterError(
            f"SLURM does not accept the job {request.name}: {reason}",
            "change the cluster profile (--profile), --gpus or --nodes; see slurm/profiles/example.yaml",
        )
    return asked.stdout


def as_shell(request: JobRequest, keys: Sequence[str]) -> str:
    """The sbatch call as one would type it, with shell variables for ids that are not known yet."""
    command = sbatch_command(request, {key: f"${shell_name(key)}" for key in keys})
    return f"{shell_name(request.key)}=$({' '.join(command)} <<'EOF'"


def shell_name(key: str) -> str:
    """A key of the plan as the name of a shell variable."""
    return key.replace("-", "_")


# --- this machine ----------------------------------------------------------------------------


Watch = Callable[[JobRequest, int], None]


def run_local(requests: Sequence[JobRequest], code_dir: Path, watch: Watch) -> list[str]:
    """Run the requests here, one element after another, one process per GPU; returns what failed.

    An element is skipped if the one it waits for failed; the report always comes. `watch` is called now and
    then with what is running. Ctrl-C ends the processes.
    """
    return _run_in_order(requests, lambda request, index: run_element(request, index, code_dir, watch))


def run_debug(requests: Sequence[JobRequest]) -> list[str]:
    """Run the requests in this very process, one after another; an error is raised where it happens."""

    def act(request: JobRequest, index: int) -> str:
        request.tasks[index](alone())
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


def run_element(request: JobRequest, index: int, code_dir: Path, watch: Watch) -> str:
    """Run one element in processes of its own; returns why it failed, or nothing."""
    from submitit import LocalExecutor

    jobs_dir = request.folder / JOBS_DIR
    processes = request.gang.gpus_per_node if request.gang else 1
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
    add_record(request.folder, replace(JobRecord.of(request, job.job_id, "local"), indices=(index,)))
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
    wanted = request.gang.gpus_per_node if request.gang else 0
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

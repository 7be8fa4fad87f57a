"""The only door to SLURM: every call of its programs, with one environment, time limit and way to fail.

A question that gets no answer is None; an order that is not carried out is a ClusterError. squeue asks not to
be run from loops, so whoever looks again and again looks through one `QueueWatch`.
"""

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from data_prep.errors import ClusterError

# Without these nothing can be submitted, watched or ended; without the first, a machine has no SLURM.
PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel")
SUBMITTER = PROGRAMS[0]
# Longer than SLURM's own programs wait for their controller; an sbatch cut off here might still be queued.
TIME_LIMIT_S = 120
# SLURM's own default: array indices are below this.
MAX_ARRAY_SIZE = 1001

# Set by a scheduler or launcher around us, or to change what SLURM's programs say to a person; a job that
# inherits them, and an answer that is read here, would be wrong.
LEAKED = re.compile(
    r"(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SCANCEL|PMI|PMIX|OMPI|SUBMITIT|TORCHELASTIC|ACCELERATE)_.*"
    r"|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_ADDR|MASTER_PORT|GROUP_RANK|ROLE_RANK"
)
KEPT = ("SLURM_CONF",)  # without it, sbatch does not find a cluster whose file lies elsewhere

# A job that has ended since squeue was asked: what was to be done to it is no longer needed.
OVER = re.compile("already (finished|completing|completed)|Invalid job id|No error", re.IGNORECASE)
# A job that has just ended, is just ending or has not begun: too late, or too early, to interrupt it.
NOT_RUNNING = re.compile("invalid (job|step)|already|completing|pending|not running|no error", re.IGNORECASE)

QUEUE_FORMAT = "%i|%T|%j|%r|%S|%E"
ACCOUNT_FLAGS = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State,JobName,ExitCode")
# Loops ask squeue at most so often (seconds), and less and less often while its answer stays the same. A test
# cluster of one's own may be asked more often: CXR_SQUEUE_EVERY_S.
LEAST_EVERY_S = float(os.environ.get("CXR_SQUEUE_EVERY_S", "10"))
MOST_EVERY_S = 6 * LEAST_EVERY_S


class SlurmRefused(ClusterError):
    """SLURM has answered, and does not do what was asked; `words` are its own."""

    def __init__(self, command: Sequence[str], words: str) -> None:
        super().__init__(f"SLURM refused `{' '.join(command)}`: {words}")
        self.words = words


# --- one runner ----------------------------------------------------------------------------------


def clean_environment() -> dict[str, str]:
    """This environment without what an outer job, a launcher or a shell start-up file left in it."""
    return {name: value for name, value in os.environ.items() if name in KEPT or not LEAKED.fullmatch(name)}


def run(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's programs with `text` as input; ClusterError if it is missing or takes too long."""
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=TIME_LIMIT_S, env=clean_environment()
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ClusterError(f"{command[0]} could not be asked: {error}", "try again later") from error


def query(*command: str) -> str | None:
    """What a program answers; None if it fails, is not there or does not answer."""
    try:
        done = run(command)
    except ClusterError:
        return None
    return done.stdout if done.returncode == 0 else None


def order(*command: str, text: str = "", may_be_over: bool = False) -> str:
    """Have SLURM do something; returns what it says. It is a failure that a job has ended, unless it may be.

    Raises SlurmRefused, with SLURM's own words, or ClusterError if it cannot be asked.
    """
    done = run(command, text)
    words = done.stderr + done.stdout
    lines = [line for line in words.splitlines() if line.strip()]
    is_over = bool(lines) and all(map(OVER.search, lines))
    if done.returncode and not (may_be_over and is_over):
        raise SlurmRefused(command, " ".join(words.split()))
    return done.stdout


# --- the cluster -----------------------------------------------------------------------------------


def has_programs() -> bool:
    """Whether SLURM is installed here."""
    return shutil.which(SUBMITTER) is not None


def missing_programs() -> list[str]:
    """SLURM's programs that the toolkit cannot do without and that are not on this machine."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def slurm_answers() -> bool:
    """Whether this machine can submit to a SLURM whose controller is up."""
    return not missing_programs() and " UP" in (query("scontrol", "ping") or "")


def require_slurm() -> None:
    """Raise ClusterError unless SLURM's programs are here and its controller is up."""
    missing = missing_programs()
    if missing or not slurm_answers():
        why = f"{', '.join(missing)} not in PATH" if missing else "its controller is not reached"
        hint = "try again later, or from a login node; --cluster local runs on this machine"
        raise ClusterError(f"no SLURM answers here: {why}", hint)


def max_array_size() -> int:
    """SLURM's bound on array indices; its usual one if it does not say."""
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", show_config(), re.MULTILINE)
    return max(1, int(size[1])) if size else MAX_ARRAY_SIZE


def show_config() -> str:
    """SLURM's settings, `Name = value` lines; empty if it does not answer."""
    return query("scontrol", "show", "config") or ""


def show_partitions() -> str:
    """A line of `Name=value` words for each partition; empty if SLURM does not answer."""
    return query("scontrol", "--oneliner", "show", "partition") or ""


def show_nodes() -> str:
    """Lines `partition|nodes|CPUs|MB|gres|state` for like nodes; empty if SLURM does not answer."""
    return query("sinfo", "--noheader", "--exact", "--format=%R|%D|%c|%m|%G|%t") or ""


def default_account() -> str:
    """The account that this user's jobs are charged to unless they name one; empty if sacctmgr names none."""
    user = pwd.getpwuid(os.getuid()).pw_name
    answer = query("sacctmgr", "-nP", "show", "user", f"name={user}", "format=DefaultAccount")
    return (answer or "").strip()


def has_accounts() -> bool:
    """Whether sacct answers."""
    return query("sacct", "-nPX", "--starttime=now", "--format=JobID") is not None


# --- jobs: questions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class QueuedJob:
    """One job, or one task of an array, as squeue shows it."""

    id: str
    """`8`, or `8_1` for a task of an array."""
    state: str
    name: str
    reason: str
    start: str
    """When SLURM means to start it, as in `2026-01-31T16:45:00`; `N/A` where it has no plan."""
    needs: str
    """What it depends on, as in `aftercorr:8_*(unfulfilled)`."""


@dataclass(frozen=True)
class EndedJob:
    """One job, or one task of an array, as sacct shows it."""

    id: str
    state: str
    name: str
    exit: str
    """Exit code and signal, as in `1:0`."""


def queue() -> tuple[QueuedJob, ...] | None:
    """This user's queued and running jobs; None if squeue does not answer."""
    return _ask_queue()


def remembered() -> tuple[QueuedJob, ...] | None:
    """As `queue`, with those that have ended since a few minutes (MinJobAge) at most."""
    return _ask_queue("--states=all")


def _ask_queue(*flags: str) -> tuple[QueuedJob, ...] | None:
    # all of them, for asking for an id that SLURM has forgotten is an error
    answer = query(
        "squeue", "--noheader", "--array", *flags, f"--user={os.getuid()}", f"--format={QUEUE_FORMAT}"
    )
    return None if answer is None else tuple(QueuedJob(*row) for row in _rows(answer, 6))


def accounts(jobs: Iterable[str]) -> tuple[EndedJob, ...] | None:
    """What the accounts say of these jobs and their array tasks; None if sacct does not answer."""
    answer = query("sacct", *ACCOUNT_FLAGS, f"--jobs={','.join(jobs)}")
    if answer is None:
        return None
    rows = _rows(answer, 4)
    return tuple(EndedJob(job, state.split()[0], name, exit_code) for job, state, name, exit_code in rows)


def _rows(text: str, columns: int) -> list[list[str]]:
    """The whole rows of an answer."""
    rows = [line.strip().split("|") for line in text.splitlines()]
    return [row for row in rows if len(row) == columns and all(row[:2])]


def show_job(job: str) -> str | None:
    """`scontrol show job`: `Name=value` words; None if SLURM does not answer, or has forgotten the job."""
    return query("scontrol", "show", "job", job)


def restarts(job: str) -> int | None:
    """How often SLURM has started a job again; None if it does not say."""
    count = re.search(r"\bRestarts=(\d+)", show_job(job) or "")
    return int(count[1]) if count else None


def job_times(job: str, columns: Sequence[str]) -> list[str]:
    """The times of one job that squeue calls by these names; none if it does not answer."""
    form = ",".join(f"{column}:30" for column in columns)
    return (query("squeue", "--noheader", f"--jobs={job}", f"--Format={form}") or "").split()


def node_address(node: str) -> str | None:
    """What SLURM itself connects to when it means a node; None if it does not say."""
    address = re.search(r"\bNodeAddr=(\S+)", query("scontrol", "show", "node", node) or "")
    return address[1] if address else None


# --- jobs: orders ----------------------------------------------------------------------------------


def sbatch(text: str, *flags: str) -> str:
    """Hand a script to sbatch; returns what it says. Raises as `order`."""
    return order("sbatch", *flags, text=text)


def cancel(*jobs: str) -> None:
    """End jobs, arrays or array tasks; it is no failure that one has ended."""
    order("scancel", "--quiet", *jobs, may_be_over=True)


def cancel_running(job: str) -> None:
    """End one job; other than for `cancel`, it is a failure that it has ended."""
    order("scancel", job)


def signal_job(job: str, name: str) -> None:
    """Send a signal, as in `USR2`, to the processes of a running job, or of one step of it, as in `8_1.0`."""
    order("scancel", f"--signal={name}", job)


def cancel_named(name: str) -> None:
    """End the jobs of that name, if SLURM answers."""
    query("scancel", "--quiet", f"--name={name}")


def requeue(job: str) -> None:
    """Put a job, or one task of an array, back into the queue; also one that has ended."""
    order("scontrol", "requeue", job)


def requeue_unless_ending(job: str) -> None:
    """Put a running job back into the queue; one that SLURM is ending already, as after scancel, is left so.

    SLURM itself decides which it is (since 19.05), so that no cancel can come in between.
    """
    order("scontrol", "requeue", "incomplete", job)


def hold(job: str) -> None:
    """Keep what is pending of a job from starting, so that its owner may release it."""
    order("scontrol", "uhold", job, may_be_over=True)


def release(job: str) -> None:
    """Take back a hold."""
    order("scontrol", "release", job, may_be_over=True)


def set_array_throttle(job: str, count: int) -> None:
    """Let so many tasks of an array run at once."""
    order("scontrol", "update", f"JobId={job}", f"ArrayTaskThrottle={count}", may_be_over=True)


# --- for loops -------------------------------------------------------------------------------------


@dataclass
class QueueWatch:
    """The queue for those who look again and again; everything that loops in one process shares one.

    squeue is asked at most every `least_every_s`, twice as rarely each time its answer stays the same, up to
    `most_every_s`; in between, `look` returns what it said last.
    """

    least_every_s: float = LEAST_EVERY_S
    most_every_s: float = MOST_EVERY_S
    ask: Callable[[], tuple[QueuedJob, ...] | None] = queue
    clock: Callable[[], float] = field(default_factory=lambda: time.monotonic)
    sleep: Callable[[float], None] = field(default_factory=lambda: time.sleep)
    _jobs: tuple[QueuedJob, ...] | None = field(default=None, init=False)
    _every_s: float = field(default=0.0, init=False)
    _due_s: float = field(default=float("-inf"), init=False)

    def look(self) -> tuple[QueuedJob, ...] | None:
        """The queue as it is, or was a moment ago; None if squeue does not answer."""
        if self.clock() >= self._due_s:
            jobs = self.ask()
            is_same = jobs == self._jobs and jobs is not None
            longer_s = 2 * self._every_s if is_same else 0.0
            self._every_s = min(max(longer_s, self.least_every_s), self.most_every_s)
            self._jobs, self._due_s = jobs, self.clock() + self._every_s
        return self._jobs

    def wait(self) -> None:
        """Sleep until squeue may be asked again."""
        self.sleep(max(0.0, self._due_s - self.clock()))

    def expire(self) -> None:
        """Have the next look ask, because something was just submitted or cancelled."""
        self._due_s, self._every_s = self.clock(), 0.0

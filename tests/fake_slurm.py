"""A SLURM in memory for unit tests: the whole life of a job can be played, and every call is on record.

It takes the place of `slurm.client.run`, understands what the toolkit asks of SLURM's programs, answers as
SLURM 22.05 does (`test_fake_slurm.py` compares the two), and refuses any other call loudly.
"""

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from data_prep.errors import ClusterError
from slurm import client

PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel", "sacct", "sacctmgr", "sinfo")
QUEUED = ("PENDING",)
ACTIVE = ("RUNNING", "COMPLETING", "SUSPENDED")
BEGINS = "2026-01-31T16:45:00"
"""When what was requeued is to begin, and when what is begun has begun."""
NO_CONTROLLER = "Unable to contact slurm controller (connect failure)"
INVALID = "Invalid job id specified"
# How SLURM's accounts write the exit of a job that has ended so: code and signal.
EXITS = {"FAILED": "1:0", "OUT_OF_MEMORY": "0:125", "NODE_FAIL": "1:0", "TIMEOUT": "0:0"}

CONFIG = {"MaxArraySize": "1001", "JobRequeue": "1", "KillWait": "30 sec", "ClusterName": "fake"}
PARTITION = (
    "PartitionName=gpu Default=YES GraceTime=0 MaxNodes=UNLIMITED MaxTime=UNLIMITED PreemptMode=OFF State=UP"
)
NODES = "gpu|2|8|16000|gpu:fake:4|idle\n"
FLAG = re.compile(r'^#SBATCH --([\w-]+)(?:="?(.*?)"?)?$', re.MULTILINE)


class UnknownCallError(AssertionError):
    """The toolkit called a program in a way that this cluster does not know."""


@dataclass
class FakeJob:
    """A job, or one task of an array."""

    id: str
    name: str
    script: str
    needs: list[tuple[str, str]]
    """Condition and job, as in `("aftercorr", "8")`."""
    state: str = "PENDING"
    reason: str = "None"
    """Why it is pending, where nothing else keeps it from starting."""
    start: str = "N/A"
    exit: str = "0:0"
    restarts: int = 0
    is_held: bool = False
    is_delayed: bool = False
    """It was requeued, and SLURM waits a while before it starts it again."""
    has_begun: bool = False
    is_preempted: bool = False
    lingers: bool = False
    """Cancelled, it goes on for a while: it saves."""
    waits: list[tuple[str, str]] = field(default_factory=list)
    """What it still needs, as squeue writes it, and whether that can still come: unfulfilled or failed."""
    times: dict[str, str] = field(default_factory=dict)
    """What `squeue --Format` says, by its own names: SubmitTime, EligibleTime, StartTime, EndTime."""

    @property
    def array(self) -> str:
        return self.id.partition("_")[0]

    @property
    def index(self) -> str:
        return self.id.partition("_")[2]

    @property
    def is_queued(self) -> bool:
        """squeue shows it."""
        return self.state in QUEUED + ACTIVE

    @property
    def is_gone(self) -> bool:
        """It was cancelled before it began: such a task of an array leaves no trace."""
        return not self.is_queued and not self.has_begun

    def has_flag(self, flag: str) -> bool:
        return re.search(rf"^#SBATCH --{flag}(\s|$)", self.script, re.MULTILINE) is not None


@dataclass(frozen=True)
class Call:
    """One call of one program."""

    command: tuple[str, ...]
    text: str
    """Its standard input."""


class FakeSlurm:
    """One cluster. Verbs without `=` in their name change it; `run` answers the toolkit."""

    def __init__(self) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.calls: list[Call] = []
        self.signals: list[tuple[str, str]] = []
        """(job, signal) of each `scancel --signal`."""
        self.programs = set(PROGRAMS)
        self.config, self.partitions, self.nodes, self.account = dict(CONFIG), PARTITION, NODES, "fake"
        self.addresses = {"n1": "10.0.0.1", "n2": "10.0.0.2"}
        self.settles_at_once = True
        """SLURM looks at dependencies as soon as a job ends; else only when `settle` is called."""
        self.now_s = 0.0
        self._caps: dict[str, int] = {}
        self._forgotten_by_accounts: set[str] = set()
        self._next_id = 1
        self._refusal = ""
        self._failures: dict[str, str] = {}
        self._hanging: set[str] = set()
        self._old_accounts: str | None = None
        self._events: list[tuple[float, Callable[[], object]]] = []

    # --- into a test -----------------------------------------------------------------------------

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the toolkit, in this process, see this cluster and no other."""
        monkeypatch.setattr(client, "run", self.run)
        monkeypatch.setattr(client, "shutil", SimpleNamespace(which=self.which))

    def take_over_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `time.sleep` and `time.monotonic` be this cluster's: sleeping costs nothing and plays `at`."""
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(time, "monotonic", self.clock)

    def which(self, program: str) -> str | None:
        return f"/usr/bin/{program}" if program in self.programs else None

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass, and with it what was planned by `at`."""
        end = self.now_s + seconds
        while due := [event for event in self._events if event[0] <= end]:
            event = min(due, key=lambda event: event[0])
            self._events.remove(event)
            self.now_s = max(self.now_s, event[0])
            event[1]()
        self.now_s = end

    def at(self, moment_s: float, act: Callable[[], object]) -> None:
        """Have something happen at that moment of this cluster's clock."""
        self._events.append((moment_s, act))

    def asked(self, program: str) -> int:
        """How often a program was called."""
        return sum(call.command[0] == program for call in self.calls)

    # --- the life of a job -----------------------------------------------------------------------

    def submit(self, name: str, array: str = "", after: str = "", flags: Sequence[str] = ("requeue",)) -> str:
        """Queue a job as sbatch does; returns its id. `array` as in `0-2%1`, `after` as in `afterok:8`."""
        lines = [f"#SBATCH --{flag}" for flag in flags]
        lines += [f"#SBATCH --job-name={name}"] + ([f"#SBATCH --array={array}"] if array else [])
        job = str(self._next_id)
        self._next_id += 1
        text = "\n".join(["#!/bin/bash", *lines, ""])
        for index in indices(array.partition("%")[0]) if array else ("",):
            task = f"{job}_{index}" if array else job
            needs = [split_need(need) for need in after.split(",") if need]
            self.jobs[task] = FakeJob(task, name, text, needs)
            self.jobs[task].waits = self._open_needs(self.jobs[task])
        if "%" in array:
            self._caps[job] = int(array.partition("%")[2])
        self._look_at_dependencies()
        return job

    def start(self, *jobs: str) -> None:
        """Give jobs or array tasks their nodes."""
        for job in self._tasks(*jobs):
            waits = self.reason(job)
            if job.state != "PENDING" or waits.startswith(("Dependency", "JobHeld", "JobArrayTaskLimit")):
                raise AssertionError(f"{job.id} cannot start: {job.state}, {waits}")
            job.state, job.start, job.has_begun, job.is_delayed = "RUNNING", BEGINS, True, False

    def end(self, job: str, state: str = "COMPLETED", exit: str = "") -> None:
        """Have jobs or array tasks end, as in `FAILED` with the exit `1:0`."""
        for task in self._tasks(job):
            if not task.is_queued:
                raise AssertionError(f"{task.id} has ended already: {task.state}")
            task.state, task.exit, task.lingers = state, exit or EXITS.get(state, "0:0"), False
            task.has_begun = task.has_begun or state != "CANCELLED"
        self._look_at_dependencies()

    def completing(self, job: str) -> None:
        """Have jobs be just ending; `end` says how."""
        for task in self._tasks(job):
            task.state = "COMPLETING"

    def requeue(self, job: str) -> None:
        """Put what runs back into the queue, where SLURM holds it for a while."""
        for task in self._tasks(job):
            task.state, task.is_delayed, task.start = "PENDING", True, BEGINS
            task.restarts, task.is_preempted = task.restarts + 1, False

    def preempt(self, job: str, at_once: bool = True) -> None:
        """Make room: requeue jobs, or only note when they must end (then `requeue` or `end` them)."""
        for task in self._tasks(job):
            task.is_preempted = True
        if at_once:
            self.requeue(job)

    def hold(self, job: str, is_held: bool = True) -> None:
        """Keep what is pending from starting; what runs is held when it is requeued."""
        for task in self._tasks(job):
            task.is_held = is_held

    def pend(self, job: str, reason: str, start: str = "N/A") -> None:
        """Give a reason why jobs are pending, and when SLURM means to start them."""
        for task in self._tasks(job):
            task.reason, task.start = reason, start

    def cancel(self, job: str) -> None:
        """End jobs as their owner, unless they `linger`."""
        for task in self._tasks(job):
            if task.is_queued and task.lingers and task.state != "PENDING":
                task.state = "COMPLETING"
            elif task.is_queued:
                task.state = "CANCELLED"
                # a task that never began leaves no trace of its own; a job does
                task.has_begun = task.has_begun or not task.index
        self._look_at_dependencies()

    def settle(self) -> None:
        """Have SLURM look at what jobs depend on."""
        self._look_at_dependencies(is_due=True)

    # --- what fails ------------------------------------------------------------------------------

    def forget(self, job: str) -> None:
        """Drop ended jobs from SLURM's memory and from the accounts."""
        for task in self._tasks(job):
            self._forgotten_by_accounts.add(task.id)
            del self.jobs[task.id]

    def accounts_off(self) -> None:
        """A site without accounts."""
        self.fail("sacct", "Slurm accounting storage is disabled")

    def accounts_lag(self) -> None:
        """From now on the accounts show what is now, whatever happens."""
        self._old_accounts = self._sacct_rows()

    def accounts_catch_up(self) -> None:
        self._old_accounts = None

    def controller_down(self) -> None:
        for program in ("sbatch", "squeue", "scontrol", "scancel", "sinfo"):
            self.fail(program, NO_CONTROLLER)

    def controller_up(self) -> None:
        for program in ("sbatch", "squeue", "scontrol", "scancel", "sinfo"):
            self._failures.pop(program, None)

    def fail(self, program: str, words: str) -> None:
        """Have every call of a program fail with these words."""
        self._failures[program] = words

    def hang(self, program: str) -> None:
        """Have a program not answer in time."""
        self._hanging.add(program)

    def uninstall(self, *programs: str) -> None:
        """Take programs off this machine; without any named, all."""
        self.programs -= set(programs or PROGRAMS)

    def refuse(self, words: str) -> None:
        """Have sbatch refuse what is submitted, in these words; none: accept it again."""
        self._refusal = words

    # --- what SLURM says -------------------------------------------------------------------------

    def reason(self, job: FakeJob) -> str:
        """Why a job is pending."""
        if job.is_held:
            return "JobHeldUser"
        if job.state != "PENDING":
            return "None"
        if job.waits:
            is_dead = any(status == "failed" for _, status in job.waits)
            return "DependencyNeverSatisfied" if is_dead else "Dependency"
        running = sum(task.state in ACTIVE for task in self._tasks(job.array))
        if running >= self._caps.get(job.array, 1001):
            return "JobArrayTaskLimit"
        return "BeginTime" if job.is_delayed else job.reason

    def _tasks(self, *jobs: str) -> list[FakeJob]:
        """The jobs and array tasks that ids mean; an array's id means all its tasks."""
        found = [task for job in jobs for task in self.jobs.values() if job in (task.id, task.array)]
        if not found:
            raise AssertionError(f"no job {', '.join(jobs)}; there are {', '.join(self.jobs) or 'none'}")
        return found

    def _open_needs(self, job: FakeJob) -> list[tuple[str, str]]:
        """What a job still waits for, as squeue writes it, and whether that can still come."""
        shown = []
        for condition, parent in job.needs:
            if (status := self._status(condition, parent, job.index)) != "met":
                is_array = parent in {task.array for task in self.jobs.values() if task.index}
                shown.append((f"{condition}:{parent}{'_*' if is_array else ''}({status})", status))
        return shown

    def _status(self, condition: str, parent: str, index: str) -> str:
        """met, unfulfilled or failed. What SLURM has forgotten counts as met."""
        tasks = [task for task in self.jobs.values() if parent in (task.id, task.array)]
        if condition == "aftercorr":
            of_array = tasks
            tasks = [task for task in tasks if task.index == index or not task.index]
            if all(task.is_gone for task in tasks) and any(task.is_queued for task in of_array):
                return "unfulfilled"  # SLURM misses a task that left no trace only when its array has ended
        if condition == "afterany":
            return "unfulfilled" if any(task.is_queued for task in tasks) else "met"
        if any(not task.is_queued and task.state != "COMPLETED" for task in tasks):
            return "failed"
        return "unfulfilled" if any(task.is_queued for task in tasks) else "met"

    def _look_at_dependencies(self, is_due: bool = False) -> None:
        """Note what is met by now, and cancel what can never start, if it was submitted that way."""
        if not (self.settles_at_once or is_due):
            return
        is_new = True
        while is_new:
            for job in self.jobs.values():
                job.waits = self._open_needs(job) if job.state == "PENDING" else []
            dead = [job for job in self.jobs.values() if self.reason(job) == "DependencyNeverSatisfied"]
            dead = [job for job in dead if job.has_flag("kill-on-invalid-dep=yes")]
            for job in dead:
                job.state, job.has_begun = "CANCELLED", True
            is_new = bool(dead)

    # --- one program each ------------------------------------------------------------------------

    def run(self, command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
        """In place of `slurm.client.run`."""
        program, *words = command
        self.calls.append(Call(tuple(command), text))
        if program not in PROGRAMS:
            raise UnknownCallError(f"{program} is none of SLURM's programs: {' '.join(command)}")
        if program not in self.programs:
            raise ClusterError(f"{program} could not be asked: no such file or directory", "try again later")
        if program in self._hanging:
            raise ClusterError(f"{program} could not be asked: it timed out", "try again later")
        if program in self._failures:
            return done(command, error=f"{program}: error: {self._failures[program]}")
        answer: subprocess.CompletedProcess[str] = getattr(self, f"_{program}")(command, words, text)
        return answer

    def _sbatch(
        self, command: Sequence[str], words: list[str], text: str
    ) -> subprocess.CompletedProcess[str]:
        flags, others = split_flags(command, words, {"--parsable", "--test-only", "--dependency"})
        if others or not text.startswith("#!"):
            raise UnknownCallError(f"sbatch wants its script on standard input: {' '.join(command)}")
        wanted = dict(FLAG.findall(text))
        array = wanted.get("array", "")
        if array and max(indices(array.partition("%")[0])) >= int(self.config["MaxArraySize"]):
            return refused(command, "Invalid job array specification")
        if self._refusal:
            return refused(command, self._refusal)
        if "--test-only" in flags:
            return done(
                command, error=f"sbatch: Job {self._next_id} to start at {BEGINS} using 1 processors", code=0
            )
        job = self.submit(wanted.get("job-name", "sbatch"), array, flags.get("--dependency", ""))
        for task in self._tasks(job):
            task.script = text
        self._look_at_dependencies()
        return done(command, f"{job}\n" if "--parsable" in flags else f"Submitted batch job {job}\n")

    def _squeue(self, command: Sequence[str], words: list[str], _: str) -> subprocess.CompletedProcess[str]:
        known = {"--noheader", "--array", "--user", "--format", "--Format", "--jobs", "--states"}
        flags, others = split_flags(command, words, known)
        if others or "--noheader" not in flags:
            raise UnknownCallError(" ".join(command))
        if flags.get("--states", "all") != "all":
            raise UnknownCallError(" ".join(command))
        queued = [
            job for job in self.jobs.values() if job.is_queued or ("--states" in flags and not job.is_gone)
        ]
        queued.sort(key=lambda job: job.state != "PENDING")
        if "--jobs" in flags:
            if not [job for job in self.jobs.values() if flags["--jobs"] in (job.id, job.array)]:
                return done(command, error=f"slurm_load_jobs error: {INVALID}")
            queued = [job for job in queued if flags["--jobs"] in (job.id, job.array)]
        if "--Format" in flags:
            columns = [column.partition(":")[0] for column in flags["--Format"].split(",")]
            return done(command, "".join(self._times(job, columns) for job in queued))
        if flags.get("--format") != "%i|%T|%j|%r|%S|%E" or "--array" not in flags:
            raise UnknownCallError(" ".join(command))
        return done(command, "".join(self._queue_row(job) for job in queued))

    def _queue_row(self, job: FakeJob) -> str:
        needs = ",".join(shown for shown, _ in job.waits) or "(null)"
        return f"{job.id}|{job.state}|{job.name}|{self.reason(job)}|{job.start}|{needs}\n"

    def _times(self, job: FakeJob, columns: Iterable[str]) -> str:
        known = {"SubmitTime": BEGINS, "EligibleTime": BEGINS, "StartTime": job.start, "EndTime": "N/A"}
        return "".join(f"{({**known, **job.times})[column]:30}" for column in columns) + "\n"

    def _sacct(self, command: Sequence[str], words: list[str], _: str) -> subprocess.CompletedProcess[str]:
        if words == ["-nPX", "--starttime=now", "--format=JobID"]:
            return done(command)
        known = {"--noheader", "--parsable2", "--allocations", "--format", "--jobs"}
        flags, others = split_flags(command, words, known)
        if others or set(flags) != known or flags["--format"] != "JobID,State,JobName,ExitCode":
            raise UnknownCallError(" ".join(command))
        rows = self._sacct_rows() if self._old_accounts is None else self._old_accounts
        wanted = {job.partition("_")[0] for job in flags["--jobs"].split(",")}
        lines = [line for line in rows.splitlines() if re.split("[_|]", line)[0] in wanted]
        return done(command, "".join(f"{line}\n" for line in lines))

    def _sacct_rows(self) -> str:
        """A row for each job and each array task that has begun, one for the rest of each array."""
        rows, rest = [], dict[str, list[FakeJob]]()
        for job in self.jobs.values():
            if job.index and not job.has_begun:
                rest.setdefault(job.array, []).append(job)
                continue
            by = " by 0" if job.state == "CANCELLED" else ""
            rows.append(f"{job.id}|{job.state}{by}|{job.name}|{job.exit}")
        for array, jobs in rest.items():
            pending = ",".join(job.index for job in jobs if job.state == "PENDING")
            is_whole = len(jobs) == len(self._tasks(array))
            if pending:
                rows.append(f"{array}_[{pending}]|PENDING|{jobs[0].name}|0:0")
            elif is_whole:  # cancelled before anything of it began
                names = ",".join(job.index for job in jobs)
                rows.append(f"{array}_[{names}]|CANCELLED by 0|{jobs[0].name}|0:0")
        return "\n".join(rows)

    def _scancel(self, command: Sequence[str], words: list[str], _: str) -> subprocess.CompletedProcess[str]:
        flags, jobs = split_flags(command, words, {"--quiet", "--signal", "--name", "--full"})
        if "--name" in flags:
            jobs += [job.id for job in self.jobs.values() if job.name == flags["--name"] and job.is_queued]
        elif not jobs:
            raise UnknownCallError(" ".join(command))
        errors = []
        for job in jobs:
            job_id = job.partition(".")[0]
            tasks = [task for task in self.jobs.values() if job_id in (task.id, task.array)]
            if (
                "--signal" not in flags
            ):  # SLURM 22.05 says nothing of a job that has ended, even without --quiet
                if tasks:
                    self.cancel(job_id)
            elif running := [task for task in tasks if task.state in ACTIVE]:
                self.signals += [(job if "." in job else task.id, flags["--signal"]) for task in running]
            else:
                why = (
                    "Job can not be altered now, try again later"
                    if any(t.is_queued for t in tasks)
                    else INVALID
                )
                errors.append(f"scancel: error: Kill job error on job id {job}: {why}")
        return done(command, error="\n".join(errors))

    def _scontrol(self, command: Sequence[str], words: list[str], _: str) -> subprocess.CompletedProcess[str]:
        match words:
            case ["ping"]:
                return done(command, "Slurmctld(primary) at fake is UP\n")
            case ["show", "config"]:
                return done(command, "".join(f"{name:24}= {value}\n" for name, value in self.config.items()))
            case ["--oneliner", "show", "partition"]:
                return done(command, f"{self.partitions}\n")
            case ["show", "node", node]:
                if node not in self.addresses:
                    return done(command, f"Node {node} not found\n", code=1)
                return done(
                    command, f"NodeName={node}\n   NodeAddr={self.addresses[node]} NodeHostName={node}\n"
                )
            case ["show", "job", job]:
                return self._show_job(command, job)
            case ["requeue", job]:
                return self._on_tasks(command, job, self._requeue_one)
            case ["requeue", "incomplete", job]:
                return self._on_tasks(command, job, lambda task: self._requeue_one(task, only_running=True))
            case ["uhold" | "release" as verb, job]:
                return self._on_tasks(command, job, lambda task: self._hold_one(task, verb == "uhold"))
            case ["update", job, throttle] if throttle.startswith("ArrayTaskThrottle="):
                self._caps[job.partition("=")[2]] = int(throttle.partition("=")[2])
                return self._on_tasks(command, job.partition("=")[2], lambda task: task.is_queued)
        raise UnknownCallError(" ".join(command))

    def _on_tasks(
        self, command: Sequence[str], job: str, act: Callable[[FakeJob], bool]
    ) -> subprocess.CompletedProcess[str]:
        """Do something to each task of a job; it fails if one cannot be done, as scontrol does."""
        is_requeue = command[1] == "requeue"
        tasks = [task for task in self.jobs.values() if job in (task.id, task.array) and not task.is_gone]
        if not tasks:
            return done(command, error=f"{job}: {INVALID}" if is_requeue else INVALID)
        over = [task.id for task in tasks if not act(task)]
        if over and is_requeue:
            return done(command, error=f"{over[0]}: Job is pending execution")
        return done(command, error="\n".join(f"{task}: Job has already finished" for task in over))

    def _requeue_one(self, job: FakeJob, only_running: bool = False) -> bool:
        """scontrol requeue: also of a job that has ended, while SLURM remembers it; or without a word not."""
        if only_running and job.state not in ("RUNNING", "SUSPENDED"):
            return True
        if job.state == "PENDING":
            return False
        self.requeue(job.id)
        return True

    def _hold_one(self, job: FakeJob, is_held: bool) -> bool:
        job.is_held = is_held and job.is_queued
        return job.is_queued

    def _show_job(self, command: Sequence[str], job: str) -> subprocess.CompletedProcess[str]:
        tasks = [task for task in self.jobs.values() if job in (task.id, task.array)]
        if not tasks:
            return done(command, error=f"slurm_load_jobs error: {INVALID}")
        text = ""
        for task in tasks:
            number = "".join(filter(str.isdigit, task.id))
            array = f" ArrayJobId={task.array} ArrayTaskId={task.index}" if task.index else ""
            moment = BEGINS if task.is_preempted else "None"
            text += (
                f"JobId={number}{array} JobName={task.name}\n"
                f"   JobState={task.state} Reason={self.reason(task)}\n"
                f"   Requeue={int(task.has_flag('requeue'))} Restarts={task.restarts} ExitCode={task.exit}\n"
                f"   PreemptEligibleTime={BEGINS} PreemptTime={moment}\n\n"
            )
        return done(command, text)

    def _sinfo(self, command: Sequence[str], words: list[str], _: str) -> subprocess.CompletedProcess[str]:
        if words != ["--noheader", "--exact", "--format=%R|%D|%c|%m|%G|%t"]:
            raise UnknownCallError(" ".join(command))
        return done(command, self.nodes)

    def _sacctmgr(self, command: Sequence[str], words: list[str], _: str) -> subprocess.CompletedProcess[str]:
        if words[:3] != ["-nP", "show", "user"] or words[4:] != ["format=DefaultAccount"]:
            raise UnknownCallError(" ".join(command))
        return done(command, f"{self.account}\n")


def done(
    command: Sequence[str], out: str = "", error: str = "", code: int | None = None
) -> subprocess.CompletedProcess[str]:
    """A program that has ended; badly if it has an `error`, unless `code` says otherwise."""
    return subprocess.CompletedProcess(list(command), int(bool(error)) if code is None else code, out, error)


def refused(command: Sequence[str], words: str) -> subprocess.CompletedProcess[str]:
    """sbatch that does not accept a job."""
    return done(command, error=f"sbatch: error: Batch job submission failed: {words}")


def split_need(need: str) -> tuple[str, str]:
    """`aftercorr:8` as condition and job."""
    condition, _, job = need.partition(":")
    if condition not in ("afterok", "aftercorr", "afterany"):
        raise UnknownCallError(f"--dependency={need}")
    return condition, job


def split_flags(
    command: Sequence[str], words: Sequence[str], known: set[str]
) -> tuple[dict[str, str], list[str]]:
    """The `--flag=value` words by flag, and the other words; a flag that is not known is an error."""
    flags = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.startswith("-")}
    if unknown := flags.keys() - known:
        raise UnknownCallError(f"{' '.join(sorted(unknown))} in: {' '.join(command)}")
    return flags, [word for word in words if not word.startswith("-")]


def indices(spec: str) -> Iterator[int]:
    """The numbers of `0-2,5`."""
    for span in spec.split(","):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)

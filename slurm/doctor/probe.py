"""A short job that looks at the nodes: what it sees there, how it is asked for, and what came back.

It goes through the same sbatch text, setup lines, container and rendezvous as a training, so what it meets is
what a training will meet. Each rank writes what it has seen after every look, so one that hangs or is killed
still tells how far it came.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.files import write_text
from slurm import client
from slurm.code_snapshot import take_snapshot
from slurm.diagnose.explain import Case, pending_reason
from slurm.diagnose.log_files import ERROR, shorten, tail
from slurm.doctor.probe_task import TOKEN_FILE, ProbeTask, RankFacts, read_facts
from slurm.job_records import JobRecord, read_records
from slurm.node.task import JobKind
from slurm.plan import JobRequest, Resources
from slurm.profile import ClusterProfile
from slurm.scheduler import QUEUED, RUNNING, ask_scheduler
from slurm.submit import submit
from vae.run_dir import JOBS_DIR

log = logging.getLogger(__name__)

# A minute is enough; from a cold network disk, importing torch alone can take one.
LIMIT_MIN = 5
POLL_S = 1.0
# What a node has written may show this much later on a network disk.
SETTLE_S = 40.0
SETTLE_AFTER_FAILURE_S = 3.0
CANCEL_LIMIT_S = 30.0
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Pending for one of these, the job would wait for ever.
HOPELESS = (
    "PartitionTimeLimit",
    "PartitionDown",
    "PartitionInactive",
    "BadConstraints",
    "AccountNotAllowed",
    "InvalidAccount",
    "InvalidQOS",
    "QOSNotAllowed",
    "JobHeldAdmin",
    "launch failed requeued held",
)


@dataclass(frozen=True)
class Probe:
    """What came of the job."""

    job: str
    resources: Resources
    state: str
    """How it ended in SLURM's words, or PENDING or RUNNING if it was cancelled for taking too long."""
    reason: str
    """Why it did not start, in SLURM's words."""
    waited_s: float
    token: str
    """What was written for the nodes to read."""
    ranks: tuple[RankFacts, ...]
    """In order; a rank that wrote nothing is missing."""
    log: str
    """The last thing the job's logs say; empty if they say nothing."""


def run_probe(
    runs_dir: Path, profile: ClusterProfile, resources: Resources, data: Path | None, wait_min: float
) -> Probe:
    """Submit the probe and wait for it; neither a job nor a file stays behind, also after Ctrl-C.

    Raises:
        ClusterError: SLURM does not accept the job.
    """
    with own_folder(runs_dir) as folder:
        code, token = take_snapshot(folder), secrets.token_hex(16)
        code.write()
        write_text(folder / TOKEN_FILE, token)
        # a job on GPUs that needs no warning: scoring
        task = ProbeTask(str(folder), str(data.resolve()) if data else "")
        request = JobRequest(
            "probe", JobKind.EVALUATE, folder, {0: task}, is_array=False, resources=resources
        )
        started = time.monotonic()
        with cancelled_at_the_end(request.name):
            with uninterrupted():
                job = submit([request], short(profile), code.folder)[request.key]
            state, reason = wait_for_end(read_records(folder)[-1], 60 * wait_min)
            ranks = wait_for_facts(folder, resources.gpus, state)
        waited_s = time.monotonic() - started
        return Probe(job, resources, state, reason, waited_s, token, ranks, last_words(folder))


def short(profile: ClusterProfile) -> ClusterProfile:
    """The profile with the probe's time limit, and with the job name by which it can be cancelled."""
    extra = {flag: value for flag, value in (profile.extra or {}).items() if flag != "job-name"}
    drop = tuple(flag for flag in profile.drop if flag != "job-name")
    return replace(profile, evaluate_limit_min=LIMIT_MIN, warning_s=0, extra=extra, drop=drop)


@contextmanager
def own_folder(runs_dir: Path) -> Iterator[Path]:
    """A new hidden folder below `runs_dir`, removed at the end."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(tempfile.mkdtemp(prefix=f".doctor-{stamp}-", dir=runs_dir.resolve()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cancelled_at_the_end(name: str) -> Iterator[None]:
    """See to it that no job of that name is queued or running afterwards."""
    try:
        yield
    finally:
        give_up = time.monotonic() + CANCEL_LIMIT_S
        with uninterrupted():
            while client.is_named_job_there(name):  # None: SLURM does not answer
                if time.monotonic() > give_up:
                    log.warning("a job may be left: scancel --name=%s", name)
                    break
                client.cancel_named(name)
                time.sleep(POLL_S)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C and the like off until the end, for this process and for programs that it starts."""
    noted: list[int] = []
    heard = [number for number in INTERRUPTS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda got, _: noted.append(got)) for number in heard}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, heard)  # which programs inherit, handlers they do not
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            raise KeyboardInterrupt


def wait_for_end(record: JobRecord, limit_s: float) -> tuple[str, str]:
    """(state, reason) of the job when it has ended, will never start, or has not started in time.

    Tells of every change on the way.
    """
    started, told = time.monotonic(), ("", "")
    while True:
        state, reason = ask_scheduler([record]).state(record, 0)
        waited_s = time.monotonic() - started
        if state not in (*QUEUED, *RUNNING, "UNKNOWN"):
            return state, reason
        if state in QUEUED and reason.split(",")[0] in HOPELESS:
            return state, reason
        if waited_s > limit_s + (60 * LIMIT_MIN if state in RUNNING else 0):
            return state, reason
        if (state, reason) != told:
            cause = f": {pending_reason(Case('', ''), reason or 'None')[0]}" if state == "PENDING" else ""
            log.info(
                "job %s after %.0f s: %s%s", record.id, waited_s, " ".join((state, reason)).strip(), cause
            )
            told = (state, reason)
        time.sleep(POLL_S)


def wait_for_facts(folder: Path, num_ranks: int, state: str) -> tuple[RankFacts, ...]:
    """What the ranks wrote, once all of it is there or nothing more can be expected."""
    give_up = time.monotonic() + (SETTLE_S if state in ("COMPLETED", "GONE") else SETTLE_AFTER_FAILURE_S)
    while True:
        list(folder.iterdir())  # a network disk then asks its server for new names
        read = [read_facts(folder, rank) for rank in range(num_ranks)]
        ranks = tuple(facts for facts in read if facts)
        is_whole = len(ranks) == num_ranks and not any(facts.doing for facts in ranks)
        if is_whole or time.monotonic() > give_up:
            return ranks
        time.sleep(0.2)


def last_words(folder: Path) -> str:
    """The line of the job's logs that says best what went wrong: an error of ours, else the last one."""
    lines = [
        line for path in sorted((folder / JOBS_DIR).glob("*.log")) for line in tail(path) if line.strip()
    ]
    errors = [found[1] for line in lines if (found := ERROR.match(line))]
    spoken = [line for line in lines if not re.match(r"srun: (error|Terminating|Job step)", line)]
    return shorten((errors or spoken or lines or [""])[-1])

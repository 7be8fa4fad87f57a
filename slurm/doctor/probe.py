"""The probe: a short job that looks at the nodes. This file submits it, waits for it and takes it away.

It goes through the same sbatch text, setup lines, container and rendezvous as a training, so what stops it
would stop a training. Each rank writes its facts after every look, so one that hangs or is killed still shows
how far it came.
"""

import logging
import re
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from data_prep.files import write_text
from slurm import client
from slurm.code_snapshot import take_snapshot
from slurm.diagnose.case import Case
from slurm.diagnose.explain import pending_reason
from slurm.diagnose.log_files import ERROR, shorten, tail
from slurm.doctor.probe_task import TOKEN_FILE, ProbeTask, RankFacts, read_facts
from slurm.doctor.site import Partition
from slurm.job_records import JobRecord, read_records
from slurm.job_states import GONE, MAX_ACCOUNT_LOOKS, QUEUED, RUNNING, scheduler_of
from slurm.node.task import JobKind
from slurm.plan import JobRequest, Resources
from slurm.profile import ClusterProfile
from slurm.submit import submit
from vae.run_dir import JOBS_DIR

log = logging.getLogger(__name__)

# A minute is enough; from a cold network disk, importing torch alone can take one.
LIMIT_MIN = 5
# The shared folder is looked at this often, squeue as rarely as everywhere (client.LEAST_EVERY_S).
FOLDER_POLL_S = 0.5
# What a node has written may show this much later on a network disk.
SETTLE_S = 40.0
SETTLE_AFTER_FAILURE_S = 3.0
# From a rank's last word to the end of its job, and from there to the accounts.
EXIT_S = 2.0
CANCEL_LIMIT_S = 30.0
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Pending for one of these, the job would wait for ever.
NEVER_STARTS = (
    *("PartitionTimeLimit", "PartitionDown", "PartitionInactive", "BadConstraints", "AccountNotAllowed"),
    *("InvalidAccount", "InvalidQOS", "QOSNotAllowed", "JobHeldAdmin", "launch failed requeued held"),
)


@dataclass(frozen=True)
class Probe:
    job: str
    resources: Resources
    state: str
    """How it ended in SLURM's words; PENDING or RUNNING if it was cancelled for taking too long."""
    reason: str
    """Why it did not start, in SLURM's words."""
    waited_s: float
    token: str
    """What was written for the nodes to read."""
    ranks: tuple[RankFacts, ...]
    """In order; a rank that wrote nothing is missing."""
    log: str
    """The line of the job's logs that says best what went wrong; empty if they say nothing."""


def probe_resources(partition: Partition, profile: ClusterProfile) -> Resources:
    """The ranks of the probe: two on two nodes, else two on one, else one."""
    gpus = int(profile.wants_gpus)
    if partition.num_nodes(gpus, profile.gpu_type) > 1:
        return Resources(gpus=2, nodes=2)
    has_two = partition.num_nodes(2 * gpus, profile.gpu_type) > 0
    has_cpus = any(kind.cpus >= 2 * profile.cpus_per_gpu for kind in partition.kinds)
    return Resources(gpus=2) if has_two and has_cpus else Resources()


def run_probe(
    runs_dir: Path, profile: ClusterProfile, resources: Resources, data: Path | None, wait_min: float
) -> Probe:
    """Submit the probe (else ClusterError) and wait for it; nothing stays behind, also after Ctrl-C."""
    profile = replace(profile, evaluate_limit_min=LIMIT_MIN, warning_s=0)
    watch = client.QueueWatch(most_every_s=client.LEAST_EVERY_S)
    runs_dir.mkdir(parents=True, exist_ok=True)
    prefix, parent = time.strftime(".doctor-%Y%m%d-%H%M%S-"), runs_dir.resolve()
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name:
        # what the nodes will find there
        folder, token = Path(name), secrets.token_hex(16)
        code = take_snapshot(folder)
        code.write()
        write_text(folder / TOKEN_FILE, token)

        # of a study's jobs, scoring is the one on GPUs that needs no stop signal
        tasks = {0: ProbeTask(name, str(data.resolve()) if data else "")}
        request = JobRequest("probe", JobKind.EVALUATE, folder, tasks, is_array=False, resources=resources)
        started = time.monotonic()
        with no_job_left(request.name, watch):
            with uninterrupted():
                job = submit([request], profile, code.folder)[request.key]
            record = read_records(folder)[-1]
            state, reason = wait_for_end(record, watch, folder, resources.gpus, 60 * wait_min)
            ranks = wait_for_facts(folder, resources.gpus, state)
            waited_s = time.monotonic() - started
        return Probe(job, resources, state, reason, waited_s, token, ranks, telling_line(folder))


@contextmanager
def no_job_left(name: str, watch: client.QueueWatch) -> Iterator[None]:
    """See to it that no job of that name is queued or running afterwards."""
    try:
        yield
        time.sleep(EXIT_S)
    finally:
        give_up = time.monotonic() + CANCEL_LIMIT_S
        with uninterrupted():
            client.cancel_named(name)  # which changes nothing for one that has ended
            watch.expire()
            # None: squeue does not answer
            while (jobs := watch.look()) is None or name in {job.name for job in jobs}:
                if time.monotonic() > give_up:
                    log.warning("a job may be left: scancel --name=%s", name)
                    break
                watch.wait()
                client.cancel_named(name)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C and the like off until the end, for this process and for programs that it starts."""
    arrived: list[int] = []
    signals = [number for number in INTERRUPTS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, lambda got, _: arrived.append(got)) for number in signals}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # which programs inherit, handlers they do not
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            raise KeyboardInterrupt


def wait_for_end(
    record: JobRecord, watch: client.QueueWatch, folder: Path, num_ranks: int, wait_s: float
) -> tuple[str, str]:
    """(state, reason) of the job once all ranks have seen everything, it has ended, or it takes too long."""
    started, limit_s, logged = time.monotonic(), wait_s, ("", "")
    while not is_complete(read_ranks(folder, num_ranks), num_ranks):
        waited_s = time.monotonic() - started
        if waited_s > limit_s:
            watch.expire()  # it may have started since squeue was asked
        state, reason = scheduler_of([record], watch.look()).state(record, 0)
        if state in RUNNING:
            limit_s = wait_s + 60 * LIMIT_MIN
        elif state not in (*QUEUED, "UNKNOWN"):
            return state_in_accounts(record)
        if waited_s > limit_s or reason.split(",")[0] in NEVER_STARTS:
            return state, reason
        if (state, reason) != logged:
            cause = f": {pending_reason(Case('', '', reason=reason))[0]}" if state == "PENDING" else ""
            log.info("job %s after %.0f s: %s%s", record.id, waited_s, f"{state} {reason}".strip(), cause)
            logged = state, reason
        time.sleep(FOLDER_POLL_S)
    return "COMPLETED", ""


def state_in_accounts(record: JobRecord) -> tuple[str, str]:
    """(state, reason) of a job that squeue has dropped; the accounts lag behind."""
    for look in range(MAX_ACCOUNT_LOOKS):
        time.sleep(EXIT_S * (1 + look))
        ended = scheduler_of([record], (), client.accounts([record.id]))
        state = ended.state(record, 0)
        if state.state != GONE or ended.ended is None:
            break
    return state


def wait_for_facts(folder: Path, num_ranks: int, state: str) -> tuple[RankFacts, ...]:
    """What the ranks wrote, once all of it is there or nothing more can be expected."""
    give_up = time.monotonic() + (SETTLE_S if state in ("COMPLETED", "GONE") else SETTLE_AFTER_FAILURE_S)
    while not is_complete(ranks := read_ranks(folder, num_ranks), num_ranks) and time.monotonic() <= give_up:
        time.sleep(FOLDER_POLL_S)
    return ranks


def read_ranks(folder: Path, num_ranks: int) -> tuple[RankFacts, ...]:
    """What the ranks have written so far, in order."""
    list(folder.iterdir())  # a network disk then asks its server for new names
    facts = [read_facts(folder, rank) for rank in range(num_ranks)]
    return tuple(rank for rank in facts if rank is not None)


def is_complete(ranks: Sequence[RankFacts], num_ranks: int) -> bool:
    """Whether every rank has looked at everything."""
    return len(ranks) == num_ranks and not any(rank.doing for rank in ranks)


def telling_line(folder: Path) -> str:
    """The line of the job's logs that says best what went wrong: an error of ours, else the last one."""
    logs = [tail(path) for path in sorted((folder / JOBS_DIR).glob("*.log"))]
    lines = [line for line in chain.from_iterable(logs) if line.strip()]
    errors = [match[1] for match in map(ERROR.match, lines) if match]
    others = [line for line in lines if not re.match(r"srun: (error|Terminating|Job step)", line)]
    return shorten((errors or others or lines or [""])[-1])

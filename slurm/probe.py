"""A short job that looks at the nodes: what it sees there, how it is asked for, and what came back.

It goes through the same sbatch text, setup lines, container and rendezvous as a training, so what it meets is
what a training will meet. Each rank writes what it has seen after every look, so one that hangs or is killed
still tells how far it came.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import re
import secrets
import shutil
import signal
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.errors import ClusterError, ToolkitError
from data_prep.files import write_json, write_text
from data_prep.shards import map_images, read_crc32, read_labels, read_manifest
from slurm.explain import Case, pending_reason
from slurm.logs import ERROR, shorten, tail
from slurm.place import Place, joined, num_cpus, own_address
from slurm.profile import ClusterProfile
from slurm.request import JOBS_DIR, Gang, JobRequest
from slurm.signals import ignore_warnings
from slurm.site import ask
from slurm.snapshot import take_snapshot
from slurm.state import QUEUED, RUNNING, JobRecord, ask_scheduler, read_records
from slurm.submit import submit
from slurm.task import Task
from vae.provenance import versions
from vae.study import read_json

log = logging.getLogger(__name__)

# A minute is enough; from a cold network disk, importing torch alone can take one.
LIMIT_MIN = 5
POLL_S = 1.0
# What a node has written may show this much later on a network disk.
SETTLE_S = 40.0
SETTLE_AFTER_FAILURE_S = 3.0
CANCEL_LIMIT_S = 30.0
# Ranks that do not meet each other within this time never will.
MEETING_LIMIT = datetime.timedelta(seconds=60)
REDUCE_BYTES = 16 << 20
TOKEN_FILE = "hello"
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


# --- on the nodes ----------------------------------------------------------------------------------


@dataclass
class RankFacts:
    """What one rank has seen; looks that failed are in `errors`, by the name of the look."""

    rank: int
    world_size: int
    node: str
    token: str = ""
    """What the launching machine had written into the shared folder."""
    free_gb: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    may_requeue: bool = False
    """SLURM would put this job back into the queue."""
    cpus_asked: int = 0
    cpus_usable: int = 0
    cpus_there: int = 0
    gpus_allocated: int = 0
    gpus_seen: int = 0
    """GPUs that torch sees."""
    gpu_name: str = ""
    has_driver: bool = False
    """The node has NVIDIA's device files."""
    cuda: str = ""
    """CUDA version torch was built with; empty for a torch without CUDA."""
    address: str = ""
    """Where rank 0 listens, as this rank knows it."""
    reduces: dict[str, float] = field(default_factory=dict)
    """Milliseconds that adding up REDUCE_BYTES over all ranks took, by backend."""
    shard: str = ""
    doing: str = ""
    """The look that was begun last; empty when all are done."""
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProbeTask(Task):
    """Looks around on each rank, and writes what it sees into the folder `path`."""

    data: str = ""
    """Packed images to read; empty = none."""

    def work(self, place: Place) -> None:
        ignore_warnings()  # nothing is lost with it, so there is nothing to hand over
        folder = Path(self.path)
        facts = RankFacts(place.rank, place.world_size, place.node)
        for name, look in self.looks(place, folder).items():
            facts.doing = name
            write_json(folder / f"rank{place.rank}.json", dataclasses.asdict(facts))
            try:
                look(facts)
            except Exception as error:  # every look tells about itself, and none stops the others
                kind = "" if isinstance(error, ToolkitError) else f"{type(error).__name__}: "
                facts.errors[name] = shorten(f"{kind}{error}")
        facts.doing = ""
        write_json(folder / f"rank{place.rank}.json", dataclasses.asdict(facts))

    def looks(self, place: Place, folder: Path) -> dict[str, Callable[[RankFacts], None]]:
        """What to look at, the surest first."""
        return {
            "folder": lambda facts: look_at_folder(facts, folder),
            "versions": look_at_versions,
            "scontrol": lambda facts: look_at_scontrol(facts, place),
            "cpus": lambda facts: look_at_cpus(facts, place),
            "shard": lambda facts: look_at_shard(facts, self.data),
            "gpus": look_at_gpus,
            "meeting": lambda facts: meet(facts, place, folder),
        }


def look_at_folder(facts: RankFacts, folder: Path) -> None:
    """What was written there from the launching machine, and how much more there is room for."""
    facts.token = (folder / TOKEN_FILE).read_text()
    facts.free_gb = shutil.disk_usage(folder).free / 1e9


def look_at_versions(facts: RankFacts) -> None:
    """Python and packages of this very process."""
    facts.versions = versions()


def look_at_scontrol(facts: RankFacts, place: Place) -> None:
    """Whether a process of a job can have its job requeued."""
    if shutil.which("scontrol") is None:
        raise ClusterError("there is no scontrol")
    if (shown := ask("scontrol", "show", "job", place.job)) is None:
        raise ClusterError(f"scontrol show job {place.job} fails")
    facts.may_requeue = "Requeue=1" in shown


def look_at_cpus(facts: RankFacts, place: Place) -> None:
    """CPUs asked for and those this process may use."""
    facts.cpus_asked, facts.cpus_usable = place.cpus, num_cpus()
    facts.cpus_there = os.cpu_count() or 0


def look_at_shard(facts: RankFacts, data: str) -> None:
    """Read the last image and the labels of one shard, and compare the image with its checksum."""
    if not data:
        return
    shard = next(shard for shards in read_manifest(Path(data)).splits.values() for shard in shards)
    image = map_images(Path(data), shard)[-1]
    labels, crc32 = read_labels(Path(data), shard), read_crc32(Path(data), shard)
    if zlib.crc32(image.tobytes()) != crc32[-1]:
        raise ClusterError(f"{shard.name} is damaged, or this node reads it wrongly")
    facts.shard = f"{shard.name}, {len(labels)} images"


def look_at_gpus(facts: RankFacts) -> None:
    """GPUs as SLURM gives them and as torch sees them."""
    facts.gpus_allocated = num_allocated(os.environ)
    facts.has_driver = Path("/dev/nvidiactl").exists()
    import torch

    facts.cuda = torch.version.cuda or ""
    facts.gpus_seen = torch.cuda.device_count()
    if facts.gpus_seen:
        facts.gpu_name = torch.cuda.get_device_name(0)


def num_allocated(environment: os._Environ[str] | dict[str, str]) -> int:
    """GPUs of this node that belong to the job, from the variables that SLURM sets."""
    names = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES")
    given = next((value for name in names if (value := environment.get(name))), "")
    return len([gpu for gpu in given.split(",") if gpu and gpu != "NoDevFiles"])


def meet(facts: RankFacts, place: Place, folder: Path) -> None:
    """Find the other ranks as a training does, and add numbers up over all of them."""
    if place.world_size == 1:
        facts.address = own_address(place)
        return
    with joined(place, folder):
        facts.address = os.environ["MASTER_ADDR"]
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=MEETING_LIMIT)
        facts.reduces["gloo"] = reduce_ms("cpu", None)
        if torch.cuda.is_available():
            facts.doing = "NCCL"  # it may end the whole process
            write_json(folder / f"rank{place.rank}.json", dataclasses.asdict(facts))
            torch.cuda.set_device(place.local_rank)
            group = dist.new_group(backend="nccl", timeout=MEETING_LIMIT)
            facts.reduces["NCCL"] = reduce_ms(f"cuda:{place.local_rank}", group)
        dist.destroy_process_group()


def reduce_ms(device: str, group: Any) -> float:
    """Milliseconds of one all-reduce of REDUCE_BYTES, after one to warm up.

    Raises:
        ClusterError: the sum is wrong.
    """
    import torch
    import torch.distributed as dist

    world_size = dist.get_world_size()
    took_s = 0.0
    for _ in range(2):
        values = torch.full((REDUCE_BYTES // 4,), float(dist.get_rank() + 1), device=device)
        started = time.perf_counter()
        dist.all_reduce(values, group=group)
        last = values[-1].item()  # waits for the device
        took_s = time.perf_counter() - started
        if last != world_size * (world_size + 1) / 2:
            raise ClusterError(f"{world_size} ranks added up to {last}")
    return 1e3 * took_s


# --- from here ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """What came of the job."""

    job: str
    gang: Gang
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
    runs_dir: Path, profile: ClusterProfile, gang: Gang, data: Path | None, wait_min: float
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
        request = JobRequest("probe", "evaluate", folder, {0: task}, is_array=False, gang=gang)
        started = time.monotonic()
        with cancelled_at_the_end(request.name):
            with uninterrupted():
                job = submit([request], short(profile), code.folder)[request.key]
            state, reason = await_end(read_records(folder)[-1], 60 * wait_min)
            ranks = await_facts(folder, gang.gpus, state)
        waited_s = time.monotonic() - started
        return Probe(job, gang, state, reason, waited_s, token, ranks, last_words(folder))


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
            while ask("squeue", "--noheader", f"--name={name}") != "":  # None: SLURM does not answer
                if time.monotonic() > give_up:
                    log.warning("a job may be left: scancel --name=%s", name)
                    break
                ask("scancel", "--quiet", f"--name={name}")
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


def await_end(record: JobRecord, limit_s: float) -> tuple[str, str]:
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


def await_facts(folder: Path, num_ranks: int, state: str) -> tuple[RankFacts, ...]:
    """What the ranks wrote, once all of it is there or nothing more can be expected."""
    give_up = time.monotonic() + (SETTLE_S if state in ("COMPLETED", "GONE") else SETTLE_AFTER_FAILURE_S)
    while True:
        list(folder.iterdir())  # a network disk then asks its server for new names
        read = [read_json(folder / f"rank{rank}.json") for rank in range(num_ranks)]
        ranks = tuple(RankFacts(**facts) for facts in read if facts)
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

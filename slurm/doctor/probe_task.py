"""What the probe does on a node: each rank looks around and writes what it sees."""

from __future__ import annotations

import datetime
import os
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from data_prep.errors import ClusterError, ToolkitError
from data_prep.records import read_record, write_record
from data_prep.shards import map_images, read_crc32, read_labels, read_manifest
from slurm import client
from slurm.diagnose.log_files import shorten
from slurm.node.environment import JobEnvironment, num_cpus
from slurm.node.rendezvous import own_address, rendezvous
from slurm.node.signals import ignore_stop_signal
from slurm.node.task import Task
from vae.provenance import versions

# Ranks that do not meet each other within this time never will.
RENDEZVOUS_LIMIT = datetime.timedelta(seconds=60)
REDUCE_BYTES = 16 << 20
TOKEN_FILE = "hello"


class RankFacts(msgspec.Struct, forbid_unknown_fields=True):
    """What one rank has seen; looks that failed are in `errors`, by the name of the look."""

    rank: int
    world_size: int
    node: str
    token: str = ""
    """What the launching machine had written into the shared folder."""
    free_gb: float = 0.0
    versions: dict[str, str] = msgspec.field(default_factory=dict)
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
    reduces: dict[str, float] = msgspec.field(default_factory=dict)
    """Milliseconds that adding up REDUCE_BYTES over all ranks took, by backend."""
    shard: str = ""
    doing: str = ""
    """The look that was begun last; empty when all are done."""
    errors: dict[str, str] = msgspec.field(default_factory=dict)


def write_facts(folder: Path, facts: RankFacts) -> None:
    """Write down what a rank has seen so far."""
    write_record(folder / f"rank{facts.rank}.json", facts)


def read_facts(folder: Path, rank: int) -> RankFacts | None:
    """What a rank has seen so far; None if it has written nothing."""
    return read_record(folder / f"rank{rank}.json", RankFacts)


@dataclass(frozen=True)
class ProbeTask(Task):
    """Looks around on each rank, and writes what it sees into the folder `path`."""

    data: str = ""
    """Packed images to read; empty = none."""

    def work(self, job_env: JobEnvironment) -> None:
        ignore_stop_signal()  # nothing is lost with it, so there is nothing to hand over
        folder = Path(self.path)
        facts = RankFacts(job_env.rank, job_env.world_size, job_env.node)
        for name, look in self.looks(job_env, folder).items():
            facts.doing = name
            write_facts(folder, facts)
            try:
                look(facts)
            except Exception as error:  # every look tells about itself, and none stops the others
                kind = "" if isinstance(error, ToolkitError) else f"{type(error).__name__}: "
                facts.errors[name] = shorten(f"{kind}{error}")
        facts.doing = ""
        write_facts(folder, facts)

    def looks(self, job_env: JobEnvironment, folder: Path) -> dict[str, Callable[[RankFacts], None]]:
        """What to look at, the surest first."""
        return {
            "folder": lambda facts: look_at_folder(facts, folder),
            "versions": look_at_versions,
            "scontrol": lambda facts: look_at_scontrol(facts, job_env),
            "cpus": lambda facts: look_at_cpus(facts, job_env),
            "shard": lambda facts: look_at_shard(facts, self.data),
            "gpus": look_at_gpus,
            "meeting": lambda facts: meet(facts, job_env, folder),
        }


def look_at_folder(facts: RankFacts, folder: Path) -> None:
    """What was written there from the launching machine, and how much more there is room for."""
    facts.token = (folder / TOKEN_FILE).read_text()
    facts.free_gb = shutil.disk_usage(folder).free / 1e9


def look_at_versions(facts: RankFacts) -> None:
    """Python and packages of this very process."""
    facts.versions = versions()


def look_at_scontrol(facts: RankFacts, job_env: JobEnvironment) -> None:
    """Whether a process of a job can have its job requeued."""
    if shutil.which("scontrol") is None:
        raise ClusterError("there is no scontrol")
    if (shown := client.show_job(job_env.job)) is None:
        raise ClusterError(f"scontrol show job {job_env.job} fails")
    facts.may_requeue = "Requeue=1" in shown


def look_at_cpus(facts: RankFacts, job_env: JobEnvironment) -> None:
    """CPUs asked for and those this process may use."""
    facts.cpus_asked, facts.cpus_usable = job_env.cpus, num_cpus()
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


def meet(facts: RankFacts, job_env: JobEnvironment, folder: Path) -> None:
    """Find the other ranks as a training does, and add numbers up over all of them."""
    if job_env.world_size == 1:
        facts.address = own_address(job_env)
        return
    with rendezvous(job_env, folder):
        facts.address = os.environ["MASTER_ADDR"]
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=RENDEZVOUS_LIMIT)
        facts.reduces["gloo"] = reduce_ms("cpu", None)
        if torch.cuda.is_available():
            facts.doing = "NCCL"  # it may end the whole process
            write_facts(folder, facts)
            torch.cuda.set_device(job_env.local_rank)
            group = dist.new_group(backend="nccl", timeout=RENDEZVOUS_LIMIT)
            facts.reduces["NCCL"] = reduce_ms(f"cuda:{job_env.local_rank}", group)
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

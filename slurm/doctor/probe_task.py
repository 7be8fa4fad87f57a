"""What the probe does on a node: each rank tries what a training needs, and writes down what it saw."""

import datetime
import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from data_prep.errors import ClusterError, ToolkitError
from data_prep.json_records import read_record, write_record
from data_prep.manifest import read_manifest
from data_prep.shard_reader import open_shard
from slurm import client
from slurm.diagnose.log_files import shorten
from slurm.node.environment import JobEnvironment, num_cpus
from slurm.node.rendezvous import own_address, rendezvous
from slurm.node.signals import ignore_stop_signal
from slurm.node.task import Task
from vae.provenance import versions

# Ranks that have not found each other within this time never will.
RENDEZVOUS_LIMIT = datetime.timedelta(seconds=60)
REDUCE_BYTES = 16 << 20
TOKEN_FILE = "hello"
# What each rank looks at; NCCL is the part of the rendezvous that may end the whole process.
Look = Literal["folder", "versions", "requeue", "cpus", "shard", "gpus", "rendezvous", "NCCL"]


class RankFacts(msgspec.Struct, forbid_unknown_fields=True):
    """What one rank has seen; why a look failed is in `errors`."""

    rank: int
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
    all_reduce_ms: dict[str, float] = msgspec.field(default_factory=dict)
    """What an all-reduce of REDUCE_BYTES over all ranks took, by backend."""
    shard: str = ""
    doing: Look | None = None
    """The look that was begun last; None when all are done."""
    errors: dict[Look, str] = msgspec.field(default_factory=dict)


def write_facts(folder: Path, facts: RankFacts) -> None:
    write_record(folder / f"rank{facts.rank}.json", facts)


def read_facts(folder: Path, rank: int) -> RankFacts | None:
    """What a rank has seen so far; None if it has written nothing."""
    return read_record(folder / f"rank{rank}.json", RankFacts)


@dataclass(frozen=True)
class ProbeTask(Task):
    """Writes what each rank sees into the folder `path`."""

    data: str = ""
    """Packed images to read; empty = none."""

    def work(self, job_env: JobEnvironment) -> None:
        ignore_stop_signal()  # nothing is lost with it, so there is nothing to save
        folder = Path(self.path)
        facts = RankFacts(job_env.rank, job_env.node)
        looks: dict[Look, Callable[[], None]] = {  # the surest first
            "folder": lambda: look_at_folder(facts, folder),
            "versions": lambda: facts.versions.update(versions()),
            "requeue": lambda: look_at_requeue(facts, job_env),
            "cpus": lambda: look_at_cpus(facts, job_env),
            "shard": lambda: look_at_shard(facts, self.data),
            "gpus": lambda: look_at_gpus(facts),
            "rendezvous": lambda: try_rendezvous(facts, job_env, folder),
        }
        for name, look in looks.items():
            facts.doing = name
            write_facts(folder, facts)
            try:
                look()
            except Exception as error:  # every look has its own verdict, and none stops the others
                kind = "" if isinstance(error, ToolkitError) else f"{type(error).__name__}: "
                facts.errors[name] = shorten(f"{kind}{error}")
        facts.doing = None
        write_facts(folder, facts)


def look_at_folder(facts: RankFacts, folder: Path) -> None:
    """What was written there from the launching machine, and how much more there is room for."""
    facts.token = (folder / TOKEN_FILE).read_text()
    facts.free_gb = shutil.disk_usage(folder).free / 1e9


def look_at_requeue(facts: RankFacts, job_env: JobEnvironment) -> None:
    """Whether a process of a job can have its job requeued."""
    if "scontrol" in client.missing_programs():
        raise ClusterError("there is no scontrol")
    job = client.show_job(job_env.job)
    if job is None:
        raise ClusterError(f"scontrol show job {job_env.job} fails")
    facts.may_requeue = "Requeue=1" in job


def look_at_cpus(facts: RankFacts, job_env: JobEnvironment) -> None:
    facts.cpus_asked, facts.cpus_usable = job_env.cpus, num_cpus()
    facts.cpus_there = os.cpu_count() or 0


def look_at_shard(facts: RankFacts, data: str) -> None:
    """Read the last image and the labels of one shard, and compare the image with its checksum."""
    if not data:
        return
    info = read_manifest(Path(data)).shards()[0]
    shard = open_shard(Path(data), info)
    if zlib.crc32(shard.images[-1]) != shard.crc32[-1]:
        raise ClusterError(f"{info.name} is damaged, or this node reads it wrongly")
    facts.shard = f"{info.name}, {len(shard.labels)} images"


def look_at_gpus(facts: RankFacts) -> None:
    """GPUs as SLURM gives them and as torch sees them."""
    facts.gpus_allocated = num_allocated(os.environ)
    facts.has_driver = Path("/dev/nvidiactl").exists()
    import torch

    facts.cuda = torch.version.cuda or ""
    facts.gpus_seen = torch.cuda.device_count()
    if facts.gpus_seen:
        facts.gpu_name = torch.cuda.get_device_name(0)


def num_allocated(environment: Mapping[str, str]) -> int:
    """GPUs of this node that belong to the job, from the variables that SLURM sets."""
    lists = map(environment.get, ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"))
    gpus = next(filter(None, lists), "").split(",")
    return sum(gpu not in ("", "NoDevFiles") for gpu in gpus)


def try_rendezvous(facts: RankFacts, job_env: JobEnvironment, folder: Path) -> None:
    """Find the other ranks as a training does, and all-reduce over all of them."""
    if job_env.world_size == 1:
        facts.address = own_address(job_env)
        return
    with rendezvous(job_env, folder):
        facts.address = os.environ["MASTER_ADDR"]
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=RENDEZVOUS_LIMIT)
        facts.all_reduce_ms["gloo"] = time_all_reduce("cpu", None)
        if torch.cuda.is_available():
            facts.doing = "NCCL"
            write_facts(folder, facts)
            torch.cuda.set_device(job_env.local_rank)
            group = dist.new_group(backend="nccl", timeout=RENDEZVOUS_LIMIT)
            facts.all_reduce_ms["NCCL"] = time_all_reduce(f"cuda:{job_env.local_rank}", group)
        dist.destroy_process_group()


def time_all_reduce(device: str, group: Any) -> float:
    """Milliseconds of an all-reduce of REDUCE_BYTES, after one to warm up; ClusterError if a sum is wrong."""
    import torch
    import torch.distributed as dist

    world_size = dist.get_world_size()
    for _ in range(2):
        values = torch.full((REDUCE_BYTES // 4,), float(dist.get_rank() + 1), device=device)
        started = time.perf_counter()
        dist.all_reduce(values, group=group)
        last = values[-1].item()  # waits for the device
        took_s = time.perf_counter() - started
        if last != world_size * (world_size + 1) / 2:
            raise ClusterError(f"{world_size} ranks added up to {last}")
    return 1e3 * took_s

"""Checks whether this machine, its SLURM and its nodes are ready: facts in, one verdict for each out.

Gathering the facts is for `look_here` below, site.py (what SLURM says) and probe.py (what a job sees).
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slurm.explain import Case, pending_reason
from slurm.probe import LIMIT_MIN, Probe, RankFacts
from slurm.profile import ClusterProfile
from slurm.request import Gang
from slurm.site import Partition, Site
from slurm.state import QUEUED, RUNNING
from vae.provenance import versions

Verdict = Literal["ok", "warn", "fail"]

# One run of `linear` at 256 px: weights and Adam's two moments, 0.6 GB a checkpoint, three at a time.
LEAST_FREE_GB = 2.0
ENOUGH_FREE_GB = 10.0
# Below this, a run that is cancelled or requeued by hand may be killed before it has saved.
ENOUGH_KILL_WAIT_S = 30
# File systems that several machines can share.
SHARED = (
    *("afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "panfs", "pvfs2", "quobyte"),
    *("smb3", "vast", "wekafs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs"),
)
# Settings of a profile that are time limits, and the setting that names their partition.
GPU_LIMITS = ("train_limit_min", "evaluate_limit_min")
CPU_LIMITS = ("pack_limit_min", "report_limit_min")


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    verdict: Verdict
    seen: str
    hint: str = ""
    """What to do, if anything."""


@dataclass(frozen=True)
class Here:
    """The machine that launches."""

    host: str
    versions: dict[str, str]
    runs_dir: Path
    is_writable: bool
    file_system: str
    """Type of the file system of the runs folder, as in `nfs4`."""
    free_gb: float
    gpus: tuple[str, ...] | None = None
    """Names of the GPUs that torch sees; None if nobody asked, for that means importing torch."""


def look_here(runs_dir: Path, with_gpus: bool) -> Here:
    """What this machine is like; `runs_dir` need not exist yet."""
    folder = runs_dir.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return Here(
        host=socket.gethostname(),
        versions=versions(),
        runs_dir=folder,
        is_writable=is_writable(existing),
        file_system=file_system(existing),
        free_gb=shutil.disk_usage(existing).free / 1e9,
        gpus=gpus_here() if with_gpus else None,
    )


def is_writable(folder: Path) -> bool:
    """Whether a file can be made there, which only trying shows: quotas, read-only mounts."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError:
        return False
    return True


def file_system(folder: Path) -> str:
    """Type of the file system that holds `folder`, from /proc/mounts; empty if unknown."""
    best, found = "", ""
    try:
        mounts = Path("/proc/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in mounts:
        _, place, kind, *_ = line.split()
        place = place.replace("\\040", " ")
        is_above = os.path.commonpath([place, folder.resolve()]) == place
        if is_above and len(place) >= len(best):
            best, found = place, kind
    return found


def gpus_here() -> tuple[str, ...]:
    """Names of the GPUs that torch sees; none without torch."""
    try:
        import torch
    except ImportError:
        return ()
    return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


# --- this machine --------------------------------------------------------------------------------


def check_here(here: Here) -> list[Check]:
    """What training needs of the machine that launches."""
    checks = [check_packages(here.versions), check_runs_folder(here), check_space("free space", here.free_gb)]
    if here.gpus is not None:
        checks.append(check_own_gpus(here.gpus))
    return checks


def check_packages(found: dict[str, str]) -> Check:
    """Python and every package are there."""
    missing = [name for name, version in found.items() if version == "not installed"]
    if missing:
        return Check("packages", "fail", f"not installed: {', '.join(missing)}", "pip install -e .")
    return Check("packages", "ok", named(found))


def named(found: dict[str, str]) -> str:
    """The versions that matter most, in one line."""
    shown = [
        f"{name.capitalize() if name == 'python' else name} {version}" for name, version in found.items()
    ]
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")


def check_runs_folder(here: Here) -> Check:
    """Studies can be written."""
    if not here.is_writable:
        return Check("runs folder", "fail", f"{here.runs_dir} cannot be written", "choose another --runs-dir")
    kind = f" ({here.file_system})" if here.file_system else ""
    return Check("runs folder", "ok", f"{here.runs_dir}{kind} can be written")


def check_shared_kind(here: Here) -> Check:
    """Without a probe, the type of the file system is all there is to judge by."""
    name, kind = "shared folder", here.file_system or "unknown"
    if kind.startswith(SHARED):
        return Check(
            name, "ok", f"{kind} is a file system that nodes can share; --probe shows whether they do"
        )
    seen = f"{kind} is usually one machine's own"
    return Check(
        name, "warn", seen, "see with --probe whether the nodes find this folder, or change --runs-dir"
    )


def check_space(name: str, free_gb: float, where: str = "") -> Check:
    """There is room for a study's checkpoints."""
    seen = f"{free_gb:,.1f} GB{where}"
    if free_gb < LEAST_FREE_GB:
        return Check(
            name, "fail", seen, f"one run needs {LEAST_FREE_GB:.0f} GB; make room, or another --runs-dir"
        )
    if free_gb < ENOUGH_FREE_GB:
        return Check(name, "warn", seen, f"each run needs up to {LEAST_FREE_GB:.0f} GB; count yours")
    return Check(name, "ok", seen)


def check_own_gpus(gpus: tuple[str, ...]) -> Check:
    """GPUs for training on this machine."""
    if not gpus:
        hint = "training here uses the CPU; with a GPU, check its driver and that torch was built for CUDA"
        return Check("GPUs", "warn", "torch sees none", hint)
    return Check("GPUs", "ok", f"{len(gpus)}: {', '.join(sorted(set(gpus)))}")


def check_slurm(has_programs: bool, site: Site | None, is_needed: bool) -> Check:
    """SLURM answers; where nothing asks for it, it may be absent."""
    if site is not None:
        config = site.config
        seen = f"{config.get('SLURM_VERSION', '?')}, cluster {config.get('ClusterName', '?')}"
        return Check("SLURM", "ok", seen)
    if has_programs:
        hint = "try `scontrol ping`; is SLURM_CONF set as on your login nodes?"
        return Check("SLURM", "fail", "sbatch is here, but its controller does not answer", hint)
    if is_needed:
        return Check("SLURM", "fail", "no sbatch on this machine", "run this on a login node of your cluster")
    return Check("SLURM", "ok", "not on this machine: studies run here, with --cluster local")


# --- what SLURM says -----------------------------------------------------------------------------


def check_site(site: Site, profile: ClusterProfile) -> list[Check]:
    """What the study's jobs will meet, as far as SLURM's settings tell."""
    partition = site.partition(first(profile.partition))
    checks = check_partition(site, profile.partition, "partition")
    if profile.cpu_partition:
        checks += check_partition(site, profile.cpu_partition, "cpu_partition")
    if partition is not None:
        checks.append(check_gpu_nodes(partition, profile))
        cpu = site.partition(first(profile.cpu_partition)) if profile.cpu_partition else partition
        if cpu is partition:
            checks.append(check_limits(partition, profile, GPU_LIMITS + CPU_LIMITS))
        else:
            checks.append(check_limits(partition, profile, GPU_LIMITS))
            checks += [check_limits(cpu, profile, CPU_LIMITS)] if cpu else []
        checks.append(check_preemption(site.config, partition))
    checks += [
        check_requeue(site.config, profile),
        check_arrays(site.config),
        check_kill_wait(site.config),
        check_process_tracking(site.config),
        check_accounting(site),
    ]
    return checks


def first(partitions: str) -> str:
    """The first of several partitions, as in `gpu,gpu-long`."""
    return partitions.split(",")[0]


def check_partition(site: Site, names: str, setting: str) -> list[Check]:
    """Every partition named is there and starts jobs."""
    return [check_one_partition(site, name, setting) for name in names.split(",")]


def check_one_partition(site: Site, name: str, setting: str) -> Check:
    """One partition; an empty name means the default one."""
    known = ", ".join(partition.name for partition in site.partitions) or "none"
    partition = site.partition(name)
    if partition is None:
        seen = (
            f'"{name}" does not exist; known: {known}' if name else f"there is no default one; known: {known}"
        )
        return Check(setting, "fail", seen, f"set {setting} in the profile to one of them")
    seen = partition.name if name else f"{partition.name}, the default"
    if partition.state != "UP":
        hint = "wait for the site, or choose another partition"
        return Check(setting, "fail", f"{seen} is {partition.state} and starts no jobs", hint)
    return Check(setting, "ok", seen)


def wants_gpus(profile: ClusterProfile) -> bool:
    """Whether jobs that train ask for GPUs: a profile may drop that flag, for a cluster without any."""
    return profile.gpu_flag not in profile.drop


def check_gpu_nodes(partition: Partition, profile: ClusterProfile) -> Check:
    """Some node has what one process asks for."""
    gpus = 1 if wants_gpus(profile) else 0
    count = partition.num_nodes(gpus, profile.gpu_type)
    seen = describe_nodes(partition)
    if partition.num_unusable:
        seen += f"; {partition.num_unusable} more are down or drained"
    if count == 0 and gpus and profile.gpu_type and partition.most_gpus:
        types = ", ".join(partition.gpu_types)
        seen += f"; none has GPUs of type {profile.gpu_type}"
        return Check("nodes", "fail", seen, f"set gpu_type in the profile to one of: {types}")
    if count == 0 and gpus and partition.kinds:
        hint = f"choose another partition, or train on CPUs: `drop: [{profile.gpu_flag}]` in the profile"
        return Check("nodes", "fail", f"{seen}; none has a GPU", hint)
    if count == 0:
        return Check("nodes", "fail", seen, "wait for the site, or choose another partition")
    most_cpus = max(kind.cpus for kind in partition.kinds)
    if profile.cpus_per_gpu > most_cpus:
        seen += f"; cpus_per_gpu is {profile.cpus_per_gpu}"
        return Check("nodes", "fail", seen, f"lower cpus_per_gpu in the profile to {most_cpus} or less")
    return Check("nodes", "ok", seen)


def describe_nodes(partition: Partition) -> str:
    """The nodes that take jobs: `2 nodes of 8 CPUs, 15 GB and 4 GPUs (a100)`."""
    if not partition.kinds:
        return "no node takes jobs"
    shown = [
        f"{kind.count} {'node' if kind.count == 1 else 'nodes'} of {kind.cpus} CPUs, {kind.mem_gb} GB"
        + (f", {kind.gpus} GPUs" if kind.gpus else "")
        + (f" ({kind.gpu_type})" if kind.gpu_type else "")
        for kind in partition.kinds
    ]
    return "; ".join(shown[:4]) + ("; ..." if len(shown) > 4 else "")


def check_limits(partition: Partition, profile: ClusterProfile, settings: Iterable[str]) -> Check:
    """No time limit of the profile is above the partition's, or the job would wait for ever."""
    name, most = f"limits in {partition.name}", partition.max_time_min
    limits = {setting: getattr(profile, setting) for setting in settings}
    asked = ", ".join(f"{setting.split('_')[0]} {limit}" for setting, limit in limits.items())
    if most is None:
        return Check(name, "ok", f"{asked} min; the partition has none")
    seen = f"{asked} min; the partition allows {most} min"
    if too_long := [setting for setting, limit in limits.items() if limit > most]:
        hint = f"set {', '.join(too_long)} in the profile to {most} or less; a longer run goes on by itself"
        return Check(name, "fail", seen, hint)
    return Check(name, "ok", seen)


def check_preemption(config: dict[str, str], partition: Partition) -> Check:
    """A run whose node is wanted by others is warned, and comes back by itself."""
    kind, mode = config.get("PreemptType", "preempt/none"), partition.preempt_mode.split(",")
    if kind.endswith("/none") or mode == ["OFF"]:
        return Check("preemption", "ok", "jobs of this partition are not preempted")
    warns = "preempt_send_user_signal" in config.get("SlurmctldParameters", "").split(",")
    seen = f"{kind}, mode {','.join(mode)}, {partition.grace_s} s grace"
    seen += ", warned with preempt_send_user_signal" if warns else ", without preempt_send_user_signal"
    if "CANCEL" in mode:
        return Check("preemption", "warn", seen, "a preempted run ends; the same launch command resumes it")
    if "REQUEUE" in mode and not (warns and partition.grace_s):
        hint = "a preempted run resumes by itself from its last checkpoint: see --run.checkpoint_every_min"
        return Check("preemption", "warn", seen, hint)
    return Check("preemption", "ok", seen)


def check_requeue(config: dict[str, str], profile: ClusterProfile) -> Check:
    """An interrupted job may go back into the queue."""
    is_default, asks = config.get("JobRequeue", "1") == "1", "requeue" not in profile.drop
    seen = f"JobRequeue {'1' if is_default else '0'}"
    if "no-requeue" in (profile.extra or {}) or not (is_default or asks):
        hint = "let jobs ask for it: take requeue out of drop, and no-requeue out of extra, in the profile"
        return Check("requeue", "fail", f"{seen}, and the profile's jobs do not ask to be requeued", hint)
    if not is_default:
        return Check(
            "requeue", "warn", f"{seen}, but every job asks for it", "see with --probe if it is heard"
        )
    return Check("requeue", "ok", seen)


def check_arrays(config: dict[str, str]) -> Check:
    """Arrays of jobs are allowed."""
    given = config.get("MaxArraySize", "1001")
    if int(given) < 2:
        hint = "ask the site to set MaxArraySize; until then use sbatch by hand, run by run"
        return Check("array size", "fail", f"MaxArraySize {given}: no arrays of jobs", hint)
    return Check("array size", "ok", f"MaxArraySize {given}; larger studies are split")


def check_kill_wait(config: dict[str, str]) -> Check:
    """A run that is told to end has the time to save."""
    seconds = int(config.get("KillWait", "30 sec").split()[0])
    seen = f"KillWait {seconds} s from SIGTERM to SIGKILL"
    if seconds < ENOUGH_KILL_WAIT_S:
        hint = "a run that is cancelled while saving resumes from the checkpoint before; nothing to do"
        return Check("kill wait", "warn", seen, hint)
    return Check("kill wait", "ok", seen)


def check_process_tracking(config: dict[str, str]) -> Check:
    """SLURM finds, and ends, every process of a job."""
    kind = config.get("ProctrackType", "unknown")
    if kind.endswith(("/pgid", "unknown")):
        hint = "processes of a job may outlive it; if a node seems busy, tell the site"
        return Check("process tracking", "warn", kind, hint)
    who = "slurmstepd's children are signalled" if kind.endswith("/cgroup") else "every process is signalled"
    return Check("process tracking", "ok", f"{kind}: {who}")


def check_accounting(site: Site) -> Check:
    """sacct tells how jobs ended."""
    account = f", default account {site.account}" if site.account else ""
    if site.has_accounts:
        return Check("accounting", "ok", f"sacct answers{account}")
    kind = site.config.get("AccountingStorageType", "unknown")
    hint = "status goes by squeue and the runs' own files, and may not know why a job ended"
    return Check("accounting", "warn", f"sacct does not answer ({kind}){account}", hint)


def check_accepted(refusal: str) -> Check:
    """SLURM takes a training job of this profile (`sbatch --test-only`); `refusal` is its reason not to."""
    if refusal:
        return Check("sbatch", "fail", refusal, "change the profile; see slurm/profiles/example.yaml")
    return Check("sbatch", "ok", "accepts a training job of this profile (--test-only)")


# --- what the probe saw --------------------------------------------------------------------------


def probe_gang(partition: Partition, profile: ClusterProfile) -> Gang:
    """The ranks of the probe: two on two nodes, else two on one, else one."""
    gpus = 1 if wants_gpus(profile) else 0
    if partition.num_nodes(gpus, profile.gpu_type) > 1:
        return Gang(gpus=2, nodes=2)
    has_two = partition.num_nodes(2 * gpus, profile.gpu_type) > 0
    has_cpus = any(kind.cpus >= 2 * profile.cpus_per_gpu for kind in partition.kinds)
    return Gang(gpus=2) if has_two and has_cpus else Gang()


def check_probe(probe: Probe, here: Here, profile: ClusterProfile, data: Path | None) -> list[Check]:
    """The nodes, from what each rank wrote."""
    checks = [check_job(probe)]
    if not probe.ranks:
        return checks
    checks += [
        check_shared(probe, here.runs_dir),
        check_space("free space", min(rank.free_gb for rank in probe.ranks), " as the nodes see it"),
        check_same_versions(probe.ranks, here.versions),
        check_scontrol(probe.ranks),
        check_cpus(probe.ranks),
        check_gpus(probe.ranks, probe.gang.gpus_per_node if wants_gpus(profile) else 0),
        *check_meeting(probe),
    ]
    if data is not None:
        checks.append(check_shard(probe.ranks, data))
    return checks


def check_job(probe: Probe) -> Check:
    """The job ran and every rank has looked at everything."""
    name, where = "job", " and ".join(sorted({rank.node for rank in probe.ranks}))
    if probe.state in QUEUED:
        cause, _ = pending_reason(Case("", ""), probe.reason or "None")
        seen = f"job {probe.job} did not start in {probe.waited_s / 60:.1f} min: {cause} ({probe.reason})"
        return Check(
            name, "fail", seen, "it was cancelled; change the profile, or wait longer with --wait-min"
        )
    said = f": {probe.log}" if probe.log else ""
    how = "was given up" if probe.state in (*RUNNING, "UNKNOWN") else "ended"
    if not probe.ranks:
        seen = f"job {probe.job} {how} ({probe.state}) before it could write anything{said}"
        hint = "check setup, container and python in the profile"
        if not probe.log:
            hint = "the nodes probably do not see this folder: choose a --runs-dir that they share, " + hint
        return Check(name, "fail", seen, hint)
    unfinished = [f"rank {rank.rank} at {rank.doing}" for rank in probe.ranks if rank.doing]
    unfinished += [f"rank {n}" for n in range(probe.gang.gpus) if n not in {r.rank for r in probe.ranks}]
    if unfinished:
        seen = f"job {probe.job} on {where} {how} ({probe.state}), {', '.join(unfinished)} not done{said}"
        return Check(
            name, "fail", seen, f"a probe may take {LIMIT_MIN} min; the checks below show how far it came"
        )
    ranks = "rank" if probe.gang.gpus == 1 else "ranks"
    return Check(
        name, "ok", f"{probe.job} on {where}, {probe.gang.gpus} {ranks}, {probe.waited_s:.0f} s in all"
    )


def check_shared(probe: Probe, runs_dir: Path) -> Check:
    """A file written here was read on the nodes, and theirs here."""
    if lost := failed(probe.ranks, "folder", lambda rank: rank.token == probe.token):
        return Check(
            "shared folder", "fail", f"not read there: {lost}", "choose a --runs-dir that nodes share"
        )
    return Check(
        "shared folder", "ok", f"a file written here was read on the nodes, and theirs here ({runs_dir})"
    )


def failed(ranks: Iterable[RankFacts], look: str, is_good: Callable[[RankFacts], bool] = bool) -> str:
    """Nodes on which a look failed or found something else, with the reason; empty if there are none."""
    nodes: dict[str, list[str]] = {}
    for rank in ranks:
        if look in rank.errors or not is_good(rank):
            nodes.setdefault(rank.errors.get(look, ""), []).append(rank.node)
    return "; ".join(
        " and ".join(sorted(set(bad))) + (f" ({why})" if why else "") for why, bad in nodes.items()
    )


def check_same_versions(ranks: Iterable[RankFacts], here: dict[str, str]) -> Check:
    """The nodes run the Python and the packages that launch."""
    other = {
        f"{name} {version} on {rank.node}, {here.get(name, 'none')} here"
        for rank in ranks
        for name, version in rank.versions.items()
        if version != here.get(name)
    }
    if other:
        hint = "use one environment on a shared disk: set python, or activate it in setup, in the profile"
        verdict: Verdict = (
            "fail" if any(" not installed on" in difference for difference in other) else "warn"
        )
        return Check("packages", verdict, "; ".join(sorted(other)), hint)
    return Check("packages", "ok", "Python and packages on the nodes are those here")


def check_scontrol(ranks: tuple[RankFacts, ...]) -> Check:
    """A job can have itself requeued."""
    if lost := failed(ranks, "scontrol"):
        hint = "nothing to do: the batch script requeues instead of the task, if it finds scontrol itself"
        return Check("requeue", "warn", f"not from a task on {lost}", hint)
    if not all(rank.may_requeue for rank in ranks):
        hint = "let jobs ask for it: take requeue out of drop, and no-requeue out of extra, in the profile"
        return Check(
            "requeue", "fail", "scontrol answers, but SLURM will not requeue the job (Requeue=0)", hint
        )
    return Check("requeue", "ok", "scontrol answers on the nodes, and the job may be requeued (Requeue=1)")


def check_cpus(ranks: tuple[RankFacts, ...]) -> Check:
    """Each process may use the CPUs it asked for."""
    if lost := failed(ranks, "cpus"):
        return Check("CPUs per task", "warn", f"unknown on {lost}")
    least = min(ranks, key=lambda rank: rank.cpus_usable)
    seen = f"{least.cpus_asked} asked for, {least.cpus_usable} usable of the node's {least.cpus_there}"
    if least.cpus_usable >= least.cpus_asked:
        return Check("CPUs per task", "ok", seen)
    if least.cpus_usable == least.cpus_there:
        hint = "SLURM believes that the node has more than it has; lower cpus_per_gpu in the profile"
        return Check("CPUs per task", "warn", seen, hint)
    return Check("CPUs per task", "fail", seen, "processes would share cores; ask the site how to bind CPUs")


def check_gpus(ranks: tuple[RankFacts, ...], asked: int) -> Check:
    """torch sees the GPUs that SLURM gave."""
    if lost := failed(ranks, "gpus"):
        return Check("GPUs", "fail", f"nobody could look on {lost}", "does torch work there? see packages")
    least = min(ranks, key=lambda rank: (rank.gpus_seen, rank.gpus_allocated))
    seen = f"{asked} asked for on each node, {least.gpus_allocated} allocated, torch sees {least.gpus_seen}"
    if asked == 0:
        return Check("GPUs", "ok", f"none asked for, torch sees {least.gpus_seen}")
    if least.gpus_seen == 0 and least.has_driver:
        built = f"CUDA {least.cuda}" if least.cuda else "no CUDA at all"
        hint = (
            f"install a torch that fits the driver (`nvidia-smi` on the node); this one was built for {built}"
        )
        return Check("GPUs", "fail", seen, hint)
    if least.gpus_seen == 0:
        hint = "the node has no NVIDIA driver; training would run on its CPUs"
        return Check("GPUs", "warn", seen, hint)
    if least.gpus_seen < asked:
        hint = "each task must see all GPUs of its job on the node: drop gpus-per-task and gpu-bind"
        return Check("GPUs", "fail", seen, hint)
    seen += f" ({least.gpu_name})"
    if max(rank.gpus_seen for rank in ranks) > asked:
        hint = "the site does not fence GPUs in, so jobs may disturb each other; ask for whole nodes"
        return Check("GPUs", "warn", seen, hint)
    return Check("GPUs", "ok", seen)


def check_meeting(probe: Probe) -> list[Check]:
    """The ranks find each other and add up."""
    ranks, lost = probe.ranks, failed(probe.ranks, "meeting", lambda rank: bool(rank.address))
    if probe.gang.gpus == 1:
        return [Check("all-reduce", "warn", "not tried: there is room for one rank only")]
    if not all(rank.address for rank in ranks):
        hint = "node names must resolve, or `scontrol show node` must work on the nodes"
        return [Check("address", "fail", f"rank 0 was not found: {lost}", hint)]
    checks = [Check("address", "ok", f"rank 0 is found at {ranks[0].address}")]
    backends = ["gloo", *(["NCCL"] if any(rank.gpus_seen for rank in ranks) else [])]
    return checks + [check_reduce(backend, probe) for backend in backends]


def check_reduce(backend: str, probe: Probe) -> Check:
    """All ranks added up over one backend."""
    name, where = f"all-reduce, {backend}", "2 nodes" if probe.gang.nodes > 1 else "one node"
    took = [rank.reduces.get(backend) for rank in probe.ranks]
    if len(took) == probe.gang.gpus and None not in took:
        slowest_ms = max(ms for ms in took if ms is not None)
        return Check(name, "ok", f"16 MiB in {slowest_ms:.0f} ms over {where}")
    why = failed(probe.ranks, "meeting", lambda rank: backend in rank.reduces) or "a rank is missing"
    hint = "does a firewall stand between the nodes?"
    if backend == "NCCL":
        hint = (
            "export NCCL_DEBUG=INFO in setup shows more; NCCL_SOCKET_IFNAME there names the right interface"
        )
    return Check(name, "fail", f"did not come about over {where}: {why}", hint)


def check_shard(ranks: tuple[RankFacts, ...], data: Path) -> Check:
    """Packed images can be read on the nodes."""
    if lost := failed(ranks, "shard", lambda rank: bool(rank.shard)):
        hint = f"is {data} on a disk that the nodes share? python jobs/pack.py tells if it is damaged"
        return Check("shard", "fail", f"not readable on {lost}", hint)
    return Check("shard", "ok", f"{ranks[0].shard}, checksum right")

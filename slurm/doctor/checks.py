"""Checks whether this machine and its SLURM are ready: facts in, a verdict on each out.

site.py gathers what SLURM says; probe.py and probed.py are the same for the nodes.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slurm.doctor.site import Partition, Site, describe_nodes, first
from slurm.profile import ClusterProfile
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
    """Without a probe, the type of the file system is all there is to evaluator by."""
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


def check_slurm(missing: Sequence[str], site: Site | None, is_needed: bool) -> Check:
    """SLURM answers, and no program of it is missing; where nothing asks for it, all may be."""
    if site is not None:
        config = site.config
        seen = f"{config.get('SLURM_VERSION', '?')}, cluster {config.get('ClusterName', '?')}"
        return Check("SLURM", "ok", seen)
    if missing and "sbatch" not in missing:
        hint = "install all of SLURM's client programs, or use a login node of your cluster"
        return Check("SLURM", "fail", f"sbatch is here, but not {', '.join(missing)}", hint)
    if not missing:
        hint = "try `scontrol ping`; is SLURM_CONF set as on your login nodes?"
        return Check("SLURM", "fail", "sbatch is here, but its controller does not answer", hint)
    if is_needed:
        return Check("SLURM", "fail", "no sbatch on this machine", "run this on a login node of your cluster")
    return Check("SLURM", "ok", "not on this machine: studies run here, with --cluster local")


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

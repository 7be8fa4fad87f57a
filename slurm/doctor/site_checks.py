"""Checks of what SLURM says of itself: would it accept, start, requeue and end a study's jobs?"""

from collections.abc import Sequence

from slurm import client
from slurm.doctor.check import Check, fail, ok, warn
from slurm.doctor.site import Partition, Site, describe_nodes
from slurm.profile import ClusterProfile

# Below this, a run that is cancelled or requeued by hand may be killed before it has saved.
ENOUGH_KILL_WAIT_S = 30
# Time limits in a profile of jobs that use GPUs, and of those that do not.
GPU_LIMITS = ("train_limit_min", "evaluate_limit_min")
CPU_LIMITS = ("pack_limit_min", "report_limit_min")


def check_site(site: Site, profile: ClusterProfile) -> list[Check]:
    """What a study's jobs will run into, as far as SLURM's settings show it."""
    checks = check_partitions(site, profile.partition, "partition")
    if profile.cpu_partition:
        checks += check_partitions(site, profile.cpu_partition, "cpu_partition")
    if partition := site.partition(profile.partition):
        limits = check_all_limits(site, partition, profile)
        checks += [check_nodes(partition, profile), *limits, check_preemption(site.config, partition)]
    return [
        *checks,
        check_requeue(site.config, profile),
        check_arrays(site.config),
        check_kill_wait(site.config),
        check_process_tracking(site.config),
        check_accounting(site),
    ]


def check_partitions(site: Site, names: str, setting: str) -> list[Check]:
    """Every partition of `gpu,gpu-long` is there and starts jobs."""
    return [check_partition(site, name, setting) for name in names.split(",")]


def check_partition(site: Site, name: str, setting: str) -> Check:
    """One partition; an empty name means the default one."""
    partition = site.partition(name)
    if partition is None:
        names = ", ".join(partition.name for partition in site.partitions) or "none"
        which = f'"{name}" does not exist' if name else "there is no default one"
        return fail(setting, f"{which}; known: {names}", f"set {setting} in the profile to one of them")
    seen = partition.name if name else f"{partition.name}, the default"
    if partition.state != "UP":
        hint = "wait for the site, or choose another partition"
        return fail(setting, f"{seen} is {partition.state} and starts no jobs", hint)
    return ok(setting, seen)


def check_nodes(partition: Partition, profile: ClusterProfile) -> Check:
    """Some node has what one process asks for."""
    seen = describe_nodes(partition)
    if partition.num_unusable:
        seen += f"; {partition.num_unusable} more are down or drained"
    if partition.num_nodes(int(profile.wants_gpus), profile.gpu_type) == 0:
        if profile.wants_gpus and profile.gpu_type and partition.num_gpus:
            hint = f"set gpu_type in the profile to one of: {', '.join(partition.gpu_types)}"
            return fail("nodes", f"{seen}; none has GPUs of type {profile.gpu_type}", hint)
        if profile.wants_gpus and partition.kinds:
            hint = f"choose another partition, or train on CPUs: `drop: [{profile.gpu_flag}]` in the profile"
            return fail("nodes", f"{seen}; none has a GPU", hint)
        return fail("nodes", seen, "wait for the site, or choose another partition")
    most_cpus = max(kind.cpus for kind in partition.kinds)
    if profile.cpus_per_gpu > most_cpus:
        seen += f"; cpus_per_gpu is {profile.cpus_per_gpu}"
        return fail("nodes", seen, f"lower cpus_per_gpu in the profile to {most_cpus} or less")
    return ok("nodes", seen)


def check_all_limits(site: Site, partition: Partition, profile: ClusterProfile) -> list[Check]:
    """The profile's time limits, in the partition each is for."""
    cpu_partition = site.partition(profile.cpu_partition) if profile.cpu_partition else partition
    if cpu_partition is partition:
        return [check_limits(partition, profile, GPU_LIMITS + CPU_LIMITS)]
    pairs = ((partition, GPU_LIMITS), (cpu_partition, CPU_LIMITS))
    return [check_limits(which, profile, settings) for which, settings in pairs if which]


def check_limits(partition: Partition, profile: ClusterProfile, settings: Sequence[str]) -> Check:
    """No time limit of the profile is above the partition's, or the job would wait for ever."""
    name, most_min = f"limits in {partition.name}", partition.max_time_min
    limits = {setting: getattr(profile, setting) for setting in settings}
    seen = ", ".join(f"{setting.split('_')[0]} {limit}" for setting, limit in limits.items()) + " min"
    if most_min is None:
        return ok(name, f"{seen}; the partition has none")
    seen += f"; the partition allows {most_min} min"
    too_long = [setting for setting, limit in limits.items() if limit > most_min]
    if too_long:
        hint = f"set {', '.join(too_long)} in the profile to {most_min} or less"
        return fail(name, seen, f"{hint}; a longer run goes on by itself")
    return ok(name, seen)


def check_preemption(config: dict[str, str], partition: Partition) -> Check:
    """A run whose node is wanted by others gets a stop signal first, and comes back by itself."""
    kind, modes = config.get("PreemptType", "preempt/none"), partition.preempt_mode.split(",")
    if kind.endswith("/none") or modes == ["OFF"]:
        return ok("preemption", "jobs of this partition are not preempted")
    has_signal = "preempt_send_user_signal" in config.get("SlurmctldParameters", "").split(",")
    seen = f"{kind}, mode {','.join(modes)}, {partition.grace_s} s grace"
    seen += ", warned with preempt_send_user_signal" if has_signal else ", without preempt_send_user_signal"
    if "CANCEL" in modes:
        return warn("preemption", seen, "a preempted run ends; the same launch command resumes it")
    if "REQUEUE" in modes and not (has_signal and partition.grace_s):
        hint = "a preempted run resumes by itself from its last checkpoint: see --run.checkpoint_every_min"
        return warn("preemption", seen, hint)
    return ok("preemption", seen)


def check_requeue(config: dict[str, str], profile: ClusterProfile) -> Check:
    """An interrupted job may go back into the queue."""
    is_default, is_asked_for = config.get("JobRequeue", "1") == "1", "requeue" not in profile.drop
    seen = f"JobRequeue {int(is_default)}"
    if "no-requeue" in (profile.extra or {}) or not (is_default or is_asked_for):
        hint = "let jobs ask for it: take requeue out of drop, and no-requeue out of extra, in the profile"
        return fail("requeue", f"{seen}, and the profile's jobs do not ask to be requeued", hint)
    if not is_default:
        return warn("requeue", f"{seen}, but every job asks for it", "see with --probe if it is heard")
    return ok("requeue", seen)


def check_arrays(config: dict[str, str]) -> Check:
    size = config.get("MaxArraySize", str(client.MAX_ARRAY_SIZE))
    if int(size) < 2:
        hint = "ask the site to set MaxArraySize; until then use sbatch by hand, run by run"
        return fail("array size", f"MaxArraySize {size}: no arrays of jobs", hint)
    return ok("array size", f"MaxArraySize {size}; larger studies are split")


def check_kill_wait(config: dict[str, str]) -> Check:
    """A run that SLURM ends has the time to save."""
    seconds = int(config.get("KillWait", "30 sec").split()[0])
    seen = f"KillWait {seconds} s from SIGTERM to SIGKILL"
    if seconds < ENOUGH_KILL_WAIT_S:
        hint = "a run that is cancelled while saving resumes from the checkpoint before; nothing to do"
        return warn("kill wait", seen, hint)
    return ok("kill wait", seen)


def check_process_tracking(config: dict[str, str]) -> Check:
    """SLURM finds, and ends, every process of a job."""
    kind = config.get("ProctrackType", "unknown")
    if kind.endswith(("/pgid", "unknown")):
        hint = "processes of a job may outlive it; if a node seems busy, tell the site"
        return warn("process tracking", kind, hint)
    who = "slurmstepd's children are signalled" if kind.endswith("/cgroup") else "every process is signalled"
    return ok("process tracking", f"{kind}: {who}")


def check_accounting(site: Site) -> Check:
    account = f", default account {site.account}" if site.account else ""
    if site.has_accounts:
        return ok("accounting", f"sacct answers{account}")
    kind = site.config.get("AccountingStorageType", "unknown")
    hint = "status goes by squeue and the runs' own files, and may not know why a job ended"
    return warn("accounting", f"sacct does not answer ({kind}){account}", hint)

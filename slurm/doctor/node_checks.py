"""Verdicts on the nodes, from what each rank of the probe has written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from slurm.diagnose.explain import Case, pending_reason
from slurm.doctor.checks import Check, Here, Verdict, check_space, wants_gpus
from slurm.doctor.probe import LIMIT_MIN, Probe
from slurm.doctor.probe_task import RankFacts
from slurm.doctor.site import Partition
from slurm.plan import Resources
from slurm.profile import ClusterProfile
from slurm.scheduler import QUEUED, RUNNING


def probe_resources(partition: Partition, profile: ClusterProfile) -> Resources:
    """The ranks of the probe: two on two nodes, else two on one, else one."""
    gpus = 1 if wants_gpus(profile) else 0
    if partition.num_nodes(gpus, profile.gpu_type) > 1:
        return Resources(gpus=2, nodes=2)
    has_two = partition.num_nodes(2 * gpus, profile.gpu_type) > 0
    has_cpus = any(kind.cpus >= 2 * profile.cpus_per_gpu for kind in partition.kinds)
    return Resources(gpus=2) if has_two and has_cpus else Resources()


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
        check_gpus(probe.ranks, probe.resources.gpus_per_node if wants_gpus(profile) else 0),
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
    unfinished += [f"rank {n}" for n in range(probe.resources.gpus) if n not in {r.rank for r in probe.ranks}]
    if unfinished:
        seen = f"job {probe.job} on {where} {how} ({probe.state}), {', '.join(unfinished)} not done{said}"
        return Check(
            name, "fail", seen, f"a probe may take {LIMIT_MIN} min; the checks below show how far it came"
        )
    ranks = "rank" if probe.resources.gpus == 1 else "ranks"
    return Check(
        name, "ok", f"{probe.job} on {where}, {probe.resources.gpus} {ranks}, {probe.waited_s:.0f} s in all"
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
        return Check("CPUs per task", "warn", f"unknown on {lost}", "look with `taskset -cp $$` in a job")
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
    if probe.resources.gpus == 1:
        hint = "runs on one GPU need none; for more, choose another partition"
        return [Check("all-reduce", "warn", "not tried: there is room for one rank only", hint)]
    if not all(rank.address for rank in ranks):
        hint = "node names must resolve, or `scontrol show node` must work on the nodes"
        return [Check("address", "fail", f"rank 0 was not found: {lost}", hint)]
    checks = [Check("address", "ok", f"rank 0 is found at {ranks[0].address}")]
    backends = ["gloo", *(["NCCL"] if any(rank.gpus_seen for rank in ranks) else [])]
    return checks + [check_reduce(backend, probe) for backend in backends]


def check_reduce(backend: str, probe: Probe) -> Check:
    """All ranks added up over one backend."""
    name, where = f"all-reduce, {backend}", "2 nodes" if probe.resources.nodes > 1 else "one node"
    took = [rank.reduces.get(backend) for rank in probe.ranks]
    if len(took) == probe.resources.gpus and None not in took:
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

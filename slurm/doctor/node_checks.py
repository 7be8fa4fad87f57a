"""Checks of the nodes, from what each rank of the probe has written."""

from collections.abc import Callable, Sequence
from pathlib import Path

from slurm.diagnose.case import Case
from slurm.diagnose.explain import pending_reason
from slurm.doctor.check import Check, fail, ok, warn
from slurm.doctor.machine_checks import check_space
from slurm.doctor.probe import LIMIT_MIN, Probe
from slurm.doctor.probe_task import Look, RankFacts
from slurm.job_states import QUEUED, RUNNING
from slurm.profile import ClusterProfile


def check_probe(
    probe: Probe, versions: dict[str, str], runs_dir: Path, profile: ClusterProfile, data: Path | None
) -> list[Check]:
    """The nodes, from what each rank wrote; `versions` are those of the machine that launches."""
    ranks = probe.ranks
    if not ranks:
        return [check_job(probe)]
    checks = [
        check_job(probe),
        check_shared(probe, runs_dir),
        check_space(min(rank.free_gb for rank in ranks), " as the nodes see it"),
        check_same_versions(ranks, versions),
        check_requeue(ranks),
        check_cpus(ranks),
        check_gpus(ranks, probe.resources.gpus_per_node if profile.wants_gpus else 0),
        *check_rendezvous(probe),
    ]
    return checks if data is None else [*checks, check_shard(ranks, data)]


def check_job(probe: Probe) -> Check:
    """The job ran and every rank has looked at everything."""
    if probe.state in QUEUED:
        cause, _ = pending_reason(Case("", "", reason=probe.reason))
        seen = f"job {probe.job} did not start in {probe.waited_s / 60:.1f} min: {cause} ({probe.reason})"
        return fail("job", seen, "it was cancelled; change the profile, or wait longer with --wait-min")
    where = " and ".join(sorted({rank.node for rank in probe.ranks}))
    last_line = f": {probe.log}" if probe.log else ""
    how = f"{'was given up' if probe.state in (*RUNNING, 'UNKNOWN') else 'ended'} ({probe.state})"
    if not probe.ranks:
        hint = "check setup, container and python in the profile"
        if not probe.log:
            hint = f"the nodes probably do not see this folder: choose a --runs-dir that they share, {hint}"
        return fail("job", f"job {probe.job} {how} before it could write anything{last_line}", hint)
    if unfinished := unfinished_ranks(probe):
        seen = f"job {probe.job} on {where} {how}, {', '.join(unfinished)} not done{last_line}"
        return fail("job", seen, f"a probe may take {LIMIT_MIN} min; the checks below show how far it came")
    ranks = "1 rank" if probe.resources.gpus == 1 else f"{probe.resources.gpus} ranks"
    return ok("job", f"{probe.job} on {where}, {ranks}, {probe.waited_s:.0f} s in all")


def unfinished_ranks(probe: Probe) -> list[str]:
    """The ranks that have not looked at everything, and where they stopped."""
    present = {rank.rank for rank in probe.ranks}
    missing = [f"rank {number}" for number in range(probe.resources.gpus) if number not in present]
    return [f"rank {rank.rank} at {rank.doing}" for rank in probe.ranks if rank.doing] + missing


def check_shared(probe: Probe, runs_dir: Path) -> Check:
    if bad := bad_nodes(probe.ranks, "folder", lambda rank: rank.token == probe.token):
        return fail("shared folder", f"not read there: {bad}", "choose a --runs-dir that nodes share")
    return ok("shared folder", f"a file written here was read on the nodes, and theirs here ({runs_dir})")


def bad_nodes(ranks: Sequence[RankFacts], look: Look, is_good: Callable[[RankFacts], bool] = bool) -> str:
    """Nodes on which a look failed or was not good, with the reason; empty if there are none."""
    nodes: dict[str, set[str]] = {}
    for rank in ranks:
        if look in rank.errors or not is_good(rank):
            nodes.setdefault(rank.errors.get(look, ""), set()).add(rank.node)
    return "; ".join(
        " and ".join(sorted(names)) + (f" ({reason})" if reason else "") for reason, names in nodes.items()
    )


def check_same_versions(ranks: Sequence[RankFacts], versions: dict[str, str]) -> Check:
    """The nodes run the Python and the packages that launch."""
    differences = set[str]()
    for rank in ranks:
        for name, version in rank.versions.items() - versions.items():
            differences.add(f"{name} {version} on {rank.node}, {versions.get(name, 'none')} here")
    if not differences:
        return ok("packages", "Python and packages on the nodes are those here")
    is_missing = any(" not installed on" in difference for difference in differences)
    hint = "use one environment on a shared disk: set python, or activate it in setup, in the profile"
    return (fail if is_missing else warn)("packages", "; ".join(sorted(differences)), hint)


def check_requeue(ranks: Sequence[RankFacts]) -> Check:
    if bad := bad_nodes(ranks, "requeue"):
        hint = "nothing to do: the batch script requeues instead of the task, if it finds scontrol itself"
        return warn("requeue", f"not from a task on {bad}", hint)
    if not all(rank.may_requeue for rank in ranks):
        hint = "let jobs ask for it: take requeue out of drop, and no-requeue out of extra, in the profile"
        return fail("requeue", "scontrol answers, but SLURM will not requeue the job (Requeue=0)", hint)
    return ok("requeue", "scontrol answers on the nodes, and the job may be requeued (Requeue=1)")


def check_cpus(ranks: Sequence[RankFacts]) -> Check:
    name = "CPUs per task"
    if bad := bad_nodes(ranks, "cpus"):
        return warn(name, f"unknown on {bad}", "look with `taskset -cp $$` in a job")
    least = min(ranks, key=lambda rank: rank.cpus_usable)
    seen = f"{least.cpus_asked} asked for, {least.cpus_usable} usable of the node's {least.cpus_there}"
    if least.cpus_usable >= least.cpus_asked:
        return ok(name, seen)
    if least.cpus_usable == least.cpus_there:
        hint = "SLURM believes that the node has more than it has; lower cpus_per_gpu in the profile"
        return warn(name, seen, hint)
    return fail(name, seen, "processes would share cores; ask the site how to bind CPUs")


def check_gpus(ranks: Sequence[RankFacts], num_asked: int) -> Check:
    if bad := bad_nodes(ranks, "gpus"):
        return fail("GPUs", f"nobody could look on {bad}", "does torch work there? see packages")
    least = min(ranks, key=lambda rank: (rank.gpus_seen, rank.gpus_allocated))
    if num_asked == 0:
        return ok("GPUs", f"none asked for, torch sees {least.gpus_seen}")
    seen = f"{num_asked} asked for on each node, {least.gpus_allocated} allocated"
    seen += f", torch sees {least.gpus_seen}"
    if least.gpus_seen == 0 and least.has_driver:
        built = f"CUDA {least.cuda}" if least.cuda else "no CUDA at all"
        hint = "install a torch that fits the driver (`nvidia-smi` on the node)"
        return fail("GPUs", seen, f"{hint}; this one was built for {built}")
    if least.gpus_seen == 0:
        return warn("GPUs", seen, "the node has no NVIDIA driver; training would run on its CPUs")
    if least.gpus_seen < num_asked:
        hint = "each task must see all GPUs of its job on the node: drop gpus-per-task and gpu-bind"
        return fail("GPUs", seen, hint)
    seen += f" ({least.gpu_name})"
    if max(rank.gpus_seen for rank in ranks) > num_asked:
        hint = "the site does not fence GPUs in, so jobs may disturb each other; ask for whole nodes"
        return warn("GPUs", seen, hint)
    return ok("GPUs", seen)


def check_rendezvous(probe: Probe) -> list[Check]:
    """The ranks find each other and add up."""
    ranks = probe.ranks
    if probe.resources.gpus == 1:
        hint = "runs on one GPU need none; for more, choose another partition"
        return [warn("all-reduce", "not tried: there is room for one rank only", hint)]
    if not all(rank.address for rank in ranks):
        bad = bad_nodes(ranks, "rendezvous", lambda rank: bool(rank.address))
        hint = "node names must resolve, or `scontrol show node` must work on the nodes"
        return [fail("address", f"rank 0 was not found: {bad}", hint)]
    backends = ["gloo", "NCCL"] if any(rank.gpus_seen for rank in ranks) else ["gloo"]
    address = ok("address", f"rank 0 is found at {ranks[0].address}")
    return [address, *(check_all_reduce(backend, probe) for backend in backends)]


def check_all_reduce(backend: str, probe: Probe) -> Check:
    name, where = f"all-reduce, {backend}", "2 nodes" if probe.resources.nodes > 1 else "one node"
    took_ms = [rank.all_reduce_ms[backend] for rank in probe.ranks if backend in rank.all_reduce_ms]
    if len(took_ms) == probe.resources.gpus:
        return ok(name, f"16 MiB in {max(took_ms):.0f} ms over {where}")
    bad = bad_nodes(probe.ranks, "rendezvous", lambda rank: backend in rank.all_reduce_ms)
    hint = "export NCCL_DEBUG=INFO in setup shows more; NCCL_SOCKET_IFNAME there names the right interface"
    if backend == "gloo":
        hint = "does a firewall stand between the nodes?"
    return fail(name, f"did not come about over {where}: {bad or 'a rank is missing'}", hint)


def check_shard(ranks: Sequence[RankFacts], data: Path) -> Check:
    if bad := bad_nodes(ranks, "shard", lambda rank: bool(rank.shard)):
        hint = f"is {data} on a disk that the nodes share? python jobs/pack.py tells if it is damaged"
        return fail("shard", f"not readable on {bad}", hint)
    return ok("shard", f"{ranks[0].shard}, checksum right")

"""What SLURM says about itself: its settings, its partitions and their nodes, and the user's account."""

import re
from collections import Counter
from dataclasses import dataclass, field

from slurm import client

# Beginnings of sinfo's states of nodes that start no jobs.
UNUSABLE = ("down", "drain", "drng", "err", "fail", "futr", "inval", "maint", "unk")


@dataclass(frozen=True)
class NodeKind:
    """The nodes of a partition that are alike."""

    count: int
    """How many take jobs; those that are down or drained are left out."""
    cpus: int
    mem_gb: int
    gpus: int = 0
    gpu_type: str = ""


@dataclass(frozen=True)
class Partition:
    name: str
    is_default: bool = False
    state: str = "UP"
    max_time_min: int | None = None
    """Longest time limit of a job; None = unlimited."""
    max_nodes: int | None = None
    """Most nodes of a job; None = unlimited."""
    preempt_mode: str = "OFF"
    grace_s: int = 0
    """Seconds between the signal and the end of a job that is preempted."""
    kinds: tuple[NodeKind, ...] = ()
    num_unusable: int = 0

    @property
    def num_gpus(self) -> int:
        return sum(kind.count * kind.gpus for kind in self.kinds)

    @property
    def gpu_types(self) -> tuple[str, ...]:
        return tuple(sorted({kind.gpu_type for kind in self.kinds if kind.gpus}))

    def num_nodes(self, gpus: int = 0, gpu_type: str = "") -> int:
        """Nodes that a job could get which wants this many GPUs of that type on each."""
        fit = [kind for kind in self.kinds if kind.gpus >= gpus and gpu_type in ("", kind.gpu_type)]
        count = sum(kind.count for kind in fit)
        return count if self.max_nodes is None else min(count, self.max_nodes)


@dataclass(frozen=True)
class Site:
    config: dict[str, str] = field(default_factory=dict)
    """`scontrol show config`."""
    partitions: tuple[Partition, ...] = ()
    account: str = ""
    """The user's default account; empty if sacctmgr names none."""
    has_accounts: bool = True
    """sacct answers."""

    def partition(self, names: str = "") -> Partition | None:
        """The first partition of `gpu,gpu-long`, the default one for an empty text; None if there is none."""
        name = names.split(",")[0]
        return next((p for p in self.partitions if (p.name == name if name else p.is_default)), None)


def ask_site() -> Site | None:
    """What SLURM says; None if its controller does not answer."""
    if not client.slurm_answers():
        return None
    return Site(
        config=read_config(client.show_config()),
        partitions=read_partitions(client.show_partitions(), client.show_nodes()),
        account=client.default_account(),
        has_accounts=client.has_accounts(),
    )


def describe_nodes(partition: Partition) -> str:
    """The nodes that take jobs: `2 nodes of 8 CPUs, 15 GB, 4 GPUs (a100)`."""
    kinds = [
        f"{kind.count} {'node' if kind.count == 1 else 'nodes'} of {kind.cpus} CPUs, {kind.mem_gb} GB"
        + (f", {kind.gpus} GPUs" if kind.gpus else "")
        + (f" ({kind.gpu_type})" if kind.gpu_type else "")
        for kind in partition.kinds
    ]
    text = "; ".join(kinds[:4]) + ("; ..." if len(kinds) > 4 else "")
    return text or "no node takes jobs"


def read_config(text: str) -> dict[str, str]:
    """`scontrol show config` by name."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def read_partitions(partitions: str, nodes: str) -> tuple[Partition, ...]:
    """Partitions from `client.show_partitions` and `client.show_nodes`."""
    rows = [line.strip().split("|") for line in nodes.splitlines()]
    whole = [row for row in rows if len(row) == 6]
    return tuple(read_partition(line, whole) for line in partitions.splitlines() if "PartitionName=" in line)


def read_partition(line: str, rows: list[list[str]]) -> Partition:
    """One partition from its line and the nodes of all."""
    facts = dict(re.findall(r"(\w+)=(\S*)", line))
    usable, num_unusable = Counter[tuple[str, str, str]](), 0
    for count, cpus, memory_mb, gres, state in [row[1:] for row in rows if row[0] == facts["PartitionName"]]:
        if state.startswith(UNUSABLE) or state.endswith("*"):  # * = does not respond
            num_unusable += int(count)
        else:
            usable[cpus, memory_mb, gres] += int(count)
    max_nodes = facts.get("MaxNodes", "")
    return Partition(
        name=facts["PartitionName"],
        is_default=facts.get("Default") == "YES",
        state=facts.get("State", "UP"),
        max_time_min=minutes(facts.get("MaxTime", "")),
        max_nodes=int(max_nodes) if max_nodes.isdigit() else None,
        preempt_mode=facts.get("PreemptMode", "OFF"),
        grace_s=leading_int(facts.get("GraceTime", "")),
        kinds=tuple(node_kind(count, *kind) for kind, count in usable.items()),
        num_unusable=num_unusable,
    )


def node_kind(count: int, cpus: str, memory_mb: str, gres: str) -> NodeKind:
    """Like nodes, from sinfo's columns; of several types of GPU in one node, the most frequent."""
    # gpu:4, gpu:a100:4(S:0-1), gpu:2080ti:2,gpu:t4:1
    gpus = [(int(number), kind) for kind, number in re.findall(r"\bgpu(?::([^:,()]+))?:(\d+)\b", gres)]
    most, kind = max(gpus, default=(0, ""))
    return NodeKind(count, leading_int(cpus), leading_int(memory_mb) // 1024, most, kind)


def leading_int(text: str) -> int:
    """The number a text begins with, 0 if none: `64+` is 64."""
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0


def minutes(limit: str) -> int | None:
    """A time limit as SLURM writes it (`1-12:00:00`, `30:00`), in minutes; None = unlimited."""
    parts = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if parts is None:
        return None
    days, hours, mins, _ = (int(part or 0) for part in parts.groups())
    return (days * 24 + hours) * 60 + mins

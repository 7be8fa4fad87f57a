"""Drafts a cluster profile from what SLURM says: the YAML file that a new site begins with."""

import dataclasses
import time
from pathlib import Path
from typing import Literal

import yaml

from data_prep.errors import ClusterError, SettingsError
from slurm.doctor.site import Partition, Site, describe_nodes
from slurm.profile import PROFILES_DIR, ClusterProfile
from vae.run_dir import NAME

# Training reads from memory-mapped files and needs few; more only make the job wait longer.
MOST_CPUS_PER_GPU = 16
MOST_GB_PER_GPU = 64
# Shown as comments where the site says nothing.
EXAMPLE = ClusterProfile(
    account="my-project",
    qos="normal",
    constraint="a100&nvlink",
    gpu_type="a100",
    warning_s=300,
    setup=("module load cuda",),
    container="apptainer exec --nv /shared/images/cxr.sif",
    python="/shared/venv/bin/python",
    drop=("kill-on-invalid-dep",),
    extra={"reservation": "course"},
)


def new_profile_path(name: str) -> Path:
    """Where the profile of that name will be; SettingsError if it is there already, or cannot be a name."""
    if not NAME.fullmatch(name) or name.endswith((".yaml", ".yml")):
        hint = "use up to 64 letters, digits, dots, dashes and underscores, without .yaml"
        raise SettingsError(f"profile name {name!r} is not allowed", hint)
    path = PROFILES_DIR / f"{name}.yaml"
    if path.exists():
        raise SettingsError(f"{path} is there already", "choose another name, or remove it first")
    return path


def draft_profile(site: Site, base: ClusterProfile) -> ClusterProfile:
    """`base` with what the site decides filled in, beside its partition; ClusterError if none takes jobs."""
    partition = site.partition(base.partition) if base.partition else choose_partition(site)
    if partition is None or not partition.kinds:
        problem = f'partition "{base.partition}" does not take' if base.partition else "no partition takes"
        hint = "wait for the site, or begin from a --profile with another partition"
        raise ClusterError(f"{problem} jobs now", hint)
    cpu_partition = choose_cpu_partition(site) if partition.num_gpus else None
    small = cpu_partition or partition  # for jobs without GPUs

    # shares of the kind of node that has most of the partition's GPUs, or else of its nodes
    node = max(partition.kinds, key=lambda kind: (kind.count * kind.gpus, kind.count))
    gpus, types = max(1, node.gpus), partition.gpu_types
    has_gpus_flag = site.config.get("SelectType", "").endswith("/cons_tres")
    gpu_flag: Literal["gpus-per-node", "gres"] = "gpus-per-node" if has_gpus_flag else "gres"
    return dataclasses.replace(
        base,
        partition=base.partition or partition.name,
        cpu_partition=cpu_partition.name if cpu_partition else "",
        account=base.account or site.account,
        gpu_type=types[0] if len(types) == 1 else "",
        gpu_flag=gpu_flag,
        cpus_per_gpu=max(1, min(MOST_CPUS_PER_GPU, node.cpus // gpus)),
        mem_per_gpu_gb=min(MOST_GB_PER_GPU, node.mem_gb // gpus),
        pack_cpus=max(1, min(base.pack_cpus, *(kind.cpus for kind in small.kinds))),
        drop=base.drop if partition.num_gpus else tuple(dict.fromkeys([*base.drop, gpu_flag])),
        train_limit_min=within(base.train_limit_min, partition),
        evaluate_limit_min=within(base.evaluate_limit_min, partition),
        pack_limit_min=within(base.pack_limit_min, small),
        report_limit_min=within(base.report_limit_min, small),
    )


def open_partitions(site: Site) -> list[Partition]:
    """The partitions that start jobs."""
    return [partition for partition in site.partitions if partition.state == "UP" and partition.kinds]


def choose_partition(site: Site) -> Partition | None:
    """For training: the default partition if it has GPUs, else the one with the most."""
    partitions = open_partitions(site)
    defaults = [partition for partition in partitions if partition.is_default and partition.num_gpus]
    return max(defaults or partitions, key=lambda p: (p.num_gpus, p.is_default), default=None)


def choose_cpu_partition(site: Site) -> Partition | None:
    """For packing: a partition without GPUs, the default one first; None if there is none."""
    without_gpus = [partition for partition in open_partitions(site) if not partition.num_gpus]
    return max(without_gpus, key=lambda p: (p.is_default, p.num_nodes()), default=None)


def within(limit_min: int, partition: Partition) -> int:
    return limit_min if partition.max_time_min is None else min(limit_min, partition.max_time_min)


def profile_text(profile: ClusterProfile, site: Site) -> str:
    """YAML with a comment where a value comes from; what the site leaves open stays as a comment."""
    partition = site.partition(profile.partition)
    notes = remarks(profile, site, partition) if partition else {}
    cluster, version = (site.config.get(name, "unknown") for name in ("ClusterName", "SLURM_VERSION"))
    lines = [
        f"# Cluster {cluster} (SLURM {version}), drafted by jobs/doctor.py on {time.strftime('%Y-%m-%d')}:",
        "# check it, and change what differs.",
        "# Every setting is explained in slurm/profile.py.",
        "",
    ]
    for name, value in vars(profile).items():
        note = f"  # {notes[name]}" if name in notes else ""
        if value:
            lines.append(yaml_line(name, value) + note)
        elif example := getattr(EXAMPLE, name):
            lines.append(f"# {yaml_line(name, example)}{note}")
    return "\n".join(lines) + "\n"


def remarks(profile: ClusterProfile, site: Site, partition: Partition) -> dict[str, str]:
    """Where values come from, by setting."""
    most = "no limit" if partition.max_time_min is None else f"at most {partition.max_time_min} min"
    others = [other.name for other in site.partitions if other.name != partition.name]
    notes = {
        "partition": describe_nodes(partition) + (f"; others: {', '.join(others[:8])}" if others else ""),
        "cpu_partition": "for packing and the report",
        "gpu_flag": f"SelectType is {site.config.get('SelectType', 'unknown')}",
        "cpus_per_gpu": "of one process; a node's share, at most 16",
        "train_limit_min": f"the partition has {most}; a run that needs longer goes on by itself",
    }
    if not site.account:
        notes["account"] = "sacctmgr names no default account"
    elif profile.account == site.account:
        notes["account"] = "the default account, as sacctmgr says"
    if not profile.gpu_type and partition.gpu_types:
        notes["gpu_type"] = f"here: {', '.join(filter(None, partition.gpu_types)) or 'GPUs without a type'}"
    return notes


def yaml_line(name: str, value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump([plain], default_flow_style=True, width=10_000, allow_unicode=True)
    return f"{name}: {text.strip()[1:-1]}"


def write_draft(path: Path, text: str) -> None:
    """Write a new profile; SettingsError if it cannot be written, or has appeared in the meantime."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise SettingsError(f"{path} is there already", "choose another name, or remove it first") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}", "copy what was shown") from error

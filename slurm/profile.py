"""Cluster profile: how one site wants its jobs asked for. A small YAML file, checked before SLURM sees it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from data_prep.errors import SettingsError
from vae.config import read_settings
from vae.run_dir import NAME

PROFILES_DIR = Path(__file__).parent / "profiles"

# One word SLURM cannot read as two, or as an option: partitions, accounts, constraints (a100&nvlink), ...
WORD = re.compile(r"[A-Za-z0-9(\[][A-Za-z0-9_.,:;=@+/&|*()\[\]-]*")
FLAG_NAME = re.compile(r"[a-z][a-z-]*")
# Flags by which the toolkit tracks its jobs.
OWN_FLAGS = frozenset({"job-name", "array", "dependency", "output", "error", "chdir", "wrap"})
# Amounts that may be 0; the others are at least 1.
MAY_BE_ZERO = ("mem_per_gpu_gb", "pack_mem_gb", "warning_s")


@dataclass(frozen=True)
class ClusterProfile:
    """How jobs are asked for at one site. Empty text and 0 mean: leave it to the site's defaults."""

    partition: str = ""
    """Partition for jobs that use GPUs."""
    cpu_partition: str = ""
    """Partition for packing and the report; empty = as `partition`."""
    account: str = ""
    """Account the time is charged to."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Node features, as in `a100&nvlink`."""

    gpu_type: str = ""
    """GPU type, as in `a100`."""
    gpu_flag: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How the site wants GPUs asked for: `--gpus-per-node=4` or `--gres=gpu:4`."""

    cpus_per_gpu: int = 4
    """CPU cores for each training or evaluation process (one process per GPU)."""
    mem_per_gpu_gb: int = 0
    """Memory for each training or evaluation process, in GB."""
    pack_cpus: int = 8
    """CPU cores of each packing job."""
    pack_jobs: int = 4
    """Largest number of packing jobs; each packs every n-th shard."""
    pack_mem_gb: int = 0
    """Memory of each packing job, in GB."""

    train_limit_min: int = 1440
    """Time limit of one attempt at training; a longer run goes on by itself in the next one."""
    evaluate_limit_min: int = 120
    """Time limit of scoring one run."""
    pack_limit_min: int = 240
    """Time limit of one packing job."""
    report_limit_min: int = 30
    """Time limit of joining the shards, and of writing the report."""
    warning_s: int = 0
    """Seconds from the stop signal to the time limit; 0 = from the saves measured so far."""

    setup: tuple[str, ...] = ()
    """Shell lines before the job's command (`module load cuda`); the job stops if one fails."""
    container: str = ""
    """Command that runs another inside a container (`apptainer exec --nv /shared/image.sif`)."""
    python: str = ""
    """Python of the jobs; empty = the one that launches."""

    drop: tuple[str, ...] = ()
    """Flags of sbatch that the site refuses, as in [kill-on-invalid-dep, mem]."""
    rename: dict[str, str] | None = None
    """Flags of sbatch that the site wants under another name, as in {mem: mem-per-node}."""
    extra: dict[str, str | int] | None = None
    """Further flags of sbatch, as in {reservation: course}; an empty value gives a bare flag."""

    def __post_init__(self) -> None:
        """Raise SettingsError for a value that sbatch, or the shell, could read as something else."""
        for name in ("partition", "cpu_partition", "account", "qos", "constraint", "gpu_type"):
            check_word(name, getattr(self, name))
        for flag, value in (self.extra or {}).items():
            check_word(f"extra.{flag}", str(value))
        renamed = self.rename or {}
        for flag in (*self.drop, *renamed, *renamed.values(), *(self.extra or {})):
            check_flag(flag)
        words = (("container", self.container), ("python", self.python))
        for name, line in (*words, *product(["setup"], self.setup)):
            if not line.isprintable():  # a line break would start another command
                raise SettingsError(f"{name} = {line!r} is not allowed", "use one line of plain text")
        try:
            shlex.split(self.container)
        except ValueError as error:
            raise SettingsError(f"container = {self.container!r}: {error}", "close the quotes") from error
        if "/" in self.python and not self.python.startswith("/"):
            raise SettingsError(f"python = {self.python!r} is not allowed", "give its absolute path")
        for name, value in vars(self).items():
            least = 0 if name in MAY_BE_ZERO else 1
            if isinstance(value, int) and value < least:
                allowed = f"at least {least}" if least else "0 or more"
                raise SettingsError(f"{name} = {value}; allowed: {allowed}")

    @property
    def wants_gpus(self) -> bool:
        """Whether jobs that train ask for GPUs: a profile may drop that flag, for a cluster without any."""
        return self.gpu_flag not in self.drop


def check_flag(name: str) -> None:
    """Raise SettingsError unless a profile may change the sbatch flag of that name."""
    if not FLAG_NAME.fullmatch(name):
        raise SettingsError(f"{name!r} is not the name of an sbatch flag", "write it without dashes")
    if name in OWN_FLAGS:
        raise SettingsError(f"{name} cannot be changed in a profile", "the toolkit tracks its jobs by it")


def check_word(name: str, value: str) -> None:
    """Raise SettingsError unless `value` is empty or one word that an #SBATCH line can hold."""
    if value and not WORD.fullmatch(value):
        hint = (
            "use one word of letters, digits and _ . , : ; = @ + / & | * ( ) [ ] -, not starting with a sign"
        )
        raise SettingsError(f"{name} = {value!r} is not allowed", hint)


def known_profiles() -> list[str]:
    """Names of the profiles that come with the toolkit or were put beside them."""
    return sorted(path.stem for path in PROFILES_DIR.glob("*.yaml"))


def read_profile(name: str) -> ClusterProfile:
    """The profile of that name, the one in a YAML file of that path, or the defaults for an empty name."""
    if not name:
        return ClusterProfile()
    if name.endswith((".yaml", ".yml")):
        return read_settings(ClusterProfile, Path(name))
    if name not in known_profiles():
        own = name if NAME.fullmatch(name) else "NAME"
        hint = "give a known name, a path that ends in .yaml, or copy slurm/profiles/example.yaml to "
        hint += f"slurm/profiles/{own}.yaml"
        raise SettingsError(f'Unknown profile "{name}". Known: {", ".join(known_profiles())}.', hint)
    return read_settings(ClusterProfile, PROFILES_DIR / f"{name}.yaml")

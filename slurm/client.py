"""TODO slurm.client."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from data_prep.errors import ClusterError
from slurm.plan import MAX_ARRAY_SIZE

# Set by a scheduler or launcher around us, or to change what SLURM's programs say to a person; a job that
# inherits them, and an answer that is read here, would be wrong.
LEAKED = re.compile(
    r"(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SCANCEL|PMI|PMIX|OMPI|SUBMITIT|TORCHELASTIC|ACCELERATE)_.*"
    r"|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_ADDR|MASTER_PORT|GROUP_RANK|ROLE_RANK"
)
KEPT = ("SLURM_CONF",)  # without it, sbatch does not find a cluster whose file lies elsewhere


def clean_environment() -> dict[str, str]:
    """This environment without what an outer job, a launcher or a shell start-up file left in it."""
    return {name: value for name, value in os.environ.items() if name in KEPT or not LEAKED.fullmatch(name)}


PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel")


def has_programs() -> bool:
    """Whether SLURM is installed here."""
    return shutil.which("sbatch") is not None


def require_slurm() -> None:
    """Raise ClusterError unless SLURM's programs are here and its controller is up."""
    missing = missing_programs()
    if missing or not slurm_answers():
        why = f"{', '.join(missing)} not in PATH" if missing else "its controller is not reached"
        hint = "try again later, or from a login node; --cluster local runs on this machine"
        raise ClusterError(f"no SLURM answers here: {why}", hint)


def missing_programs() -> list[str]:
    """SLURM's programs that the toolkit cannot do without and that are not on this machine."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def slurm_answers() -> bool:
    """Whether this machine can submit to a SLURM whose controller is up."""
    if missing_programs():
        return False
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return ping.returncode == 0 and " UP" in ping.stdout


def max_array_size() -> int:
    """SLURM's bound on array indices; its usual one if it does not tell."""
    try:
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return MAX_ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown.stdout, re.M)
    return max(1, int(found[1])) if found else MAX_ARRAY_SIZE


ANSWER_LIMIT_S = 30


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=ANSWER_LIMIT_S,
            check=True,
            env=clean_environment(),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


COMMAND_LIMIT_S = 60

# A job that has ended since squeue was asked is no failure.
OVER = re.compile("already (finished|completing|completed)|Invalid job id|No error", re.IGNORECASE)


def ask(*command: str) -> None:
    """Have SLURM do something; it is no failure that a job has ended in the meantime.

    Raises:
        ClusterError: SLURM's own words on why not.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, env=clean_environment()
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ClusterError(f"{command[0]} could not be asked: {error}", "try again later") from error
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    if done.returncode and not (lines and all(OVER.search(line) for line in lines)):
        raise ClusterError(f"SLURM refused `{' '.join(command)}`: {' '.join(' '.join(lines).split())}")

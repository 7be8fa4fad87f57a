"""Checks that cost seconds here and hours in the queue: before a launch writes or submits anything."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from data_prep.errors import ClusterError, SettingsError
from slurm.plan import Resources
from vae.config import RunConfig

# Folders that are usually a node's own; a job on another node would not find its run there.
PRIVATE_DIRS = ("/tmp", "/var/tmp", "/dev/shm", "/run")

log = logging.getLogger(__name__)


def check_batch(config: RunConfig, gpus: int, num_train_images: int) -> None:
    """Raise SettingsError if a batch cannot be shared out among the GPUs, or is larger than the data."""
    batch, least = f"batch_size {config.batch_size}", gpus * config.accumulate
    if config.batch_size < least:
        hint = f"use fewer GPUs, or --run.batch_size {least} (which changes the result)"
        raise SettingsError(f"{batch} cannot be shared by {least} (GPUs x accumulate)", hint)
    if config.batch_size > num_train_images:
        hint = "lower --run.batch_size, or use more data"
        raise SettingsError(f"{batch} is more than the {num_train_images} training images", hint)


def check_writable(folder: Path) -> None:
    """Raise SettingsError unless files can be made in `folder`, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        hint = "choose another place (--runs-dir for studies), or ask its owner"
        raise SettingsError(f"{existing} is not a folder this user can write to", hint)


def check_this_machine(resources: Resources) -> None:
    """Raise ClusterError if a local run needs several nodes, or more GPUs than there are; warn of none."""
    if resources.nodes > 1:
        several = f"--nodes {resources.nodes}, but this is one machine and no SLURM"
        raise ClusterError(several, "use --nodes 1")
    gpus = num_gpus_here()
    if gpus == 0:
        text = "warning: no NVIDIA GPU here; --gpus %d means as many processes on the CPU"
        log.warning(text, resources.gpus)
    elif gpus < resources.gpus:
        raise ClusterError(f"--gpus {resources.gpus}, but this machine has {gpus}", f"use --gpus {gpus}")


def num_gpus_here() -> int:
    """GPUs of this machine, as NVIDIA's driver counts them; torch, which knows more, would take seconds."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def warn_of_private_folders(folders: Iterable[Path]) -> None:
    """Warn of folders that a node is unlikely to share with this machine."""
    for folder in folders:
        if str(folder).startswith(tuple(f"{private}/" for private in PRIVATE_DIRS)):
            log.warning("warning: %s is probably not shared with the nodes; jobs would not find it", folder)

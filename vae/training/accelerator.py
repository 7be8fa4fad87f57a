"""Starts accelerate on every rank: mixed precision, trackers, the process group, and its world size."""

import datetime
import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, utils
from accelerate.state import AcceleratorState

from data_prep.errors import RunError, SettingsError
from vae.config import RunConfig
from vae.run_dir import TENSORBOARD_DIR

# Ranks that wait longer than this for each other are not coming: say so instead of burning the allocation.
RENDEZVOUS_TIME_LIMIT = datetime.timedelta(minutes=10)
TRACKERS = [str(tracker) for tracker in utils.LoggerType if tracker != utils.LoggerType.ALL]


def start_accelerator(config: RunConfig, run_dir: Path) -> Accelerator:
    """An Accelerator with the run's precision and trackers; SettingsError or RunError if it cannot be."""
    for name in config.trackers:
        if name not in TRACKERS:
            raise SettingsError(f"unknown tracker {name!r}; known: {', '.join(TRACKERS)}")
    # One process may train several runs one after another, each with its own precision.
    AcceleratorState._reset_state()
    on_gpu = torch.cuda.is_available()
    try:
        accelerator = Accelerator(
            mixed_precision=choose_precision(config.precision, on_gpu),
            cpu=not on_gpu,
            log_with=list(config.trackers) or None,
            project_config=utils.ProjectConfiguration(str(run_dir), str(run_dir / TENSORBOARD_DIR)),
            kwargs_handlers=[
                utils.InitProcessGroupKwargs(timeout=RENDEZVOUS_TIME_LIMIT),
                utils.DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                utils.GradScalerKwargs(init_scale=first_loss_scale(config)),
            ],
        )
    except dist.DistError as error:
        raise _failed_rendezvous(str(error).splitlines()[0]) from error
    check_world_size(accelerator)
    return accelerator


def _failed_rendezvous(reason: str) -> RunError:
    """Names this rank, its host, and where it looked for rank 0."""
    rank, host = os.environ.get("RANK"), socket.gethostname()
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    network = os.environ.get("NCCL_SOCKET_IFNAME") or "chosen by the library"
    return RunError(
        f"rank {rank} on {host} did not meet the others at {where} (network interface: {network}): {reason}",
        "if the nodes have several networks, name the right one in the profile's setup lines: "
        "export NCCL_SOCKET_IFNAME=... GLOO_SOCKET_IFNAME=...",
    )


def choose_precision(precision: str, on_gpu: bool) -> str:
    """accelerate's name for a precision setting; `auto` is bf16 where the GPU has it, else none."""
    if precision == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if precision == "fp16" and not on_gpu:
        raise SettingsError("precision fp16 needs a GPU, and none is visible here", "use auto, bf16 or fp32")
    return {"fp32": "no", "fp64": "no"}.get(precision, precision)


def first_loss_scale(config: RunConfig) -> float:
    """fp16 gradient scale to start from: torch's 65,536 for a mean loss, brought to our summed one.

    A sum over batch and pixels has gradients so much larger: from 65,536 twenty steps or so would be skipped.
    """
    return 65536.0 / (config.batch_size * config.image_size_px**2)


def check_world_size(accelerator: Accelerator) -> None:
    """Raise RunError where accelerate would train separate models into one folder, as too few ranks met."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world_size:
        raise RunError(
            f"{accelerator.num_processes} of {world_size} ranks came together on {accelerator.device}",
            "check MASTER_ADDR, MASTER_PORT and the visible GPUs of the job",
        )

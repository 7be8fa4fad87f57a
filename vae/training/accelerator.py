"""Starts accelerate on every rank: mixed precision, trackers, the process group, and its world size."""

import datetime
import logging
import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, utils
from accelerate.state import AcceleratorState

from data_prep.errors import RunError, SettingsError
from vae.allocator import keep_freed_memory
from vae.config import RunConfig
from vae.provenance import read_attempts
from vae.run_dir import TENSORBOARD_DIR

log = logging.getLogger(__name__)

CPU_INFO = Path("/proc/cpuinfo")
# Ranks that wait longer than this for each other are not coming: say so instead of burning the allocation.
RENDEZVOUS_TIME_LIMIT = datetime.timedelta(minutes=10)
EXCHANGES = {
    "full": utils.DDPCommunicationHookType.NO,
    "bf16": utils.DDPCommunicationHookType.BF16,
}
TRACKERS = [str(tracker) for tracker in utils.LoggerType if tracker != utils.LoggerType.ALL]


def start_accelerator(config: RunConfig, run_dir: Path) -> Accelerator:
    """An Accelerator with the run's precision and trackers; SettingsError or RunError if it cannot be."""
    for name in config.trackers:
        if name not in TRACKERS:
            raise SettingsError(f"unknown tracker {name!r}; known: {', '.join(TRACKERS)}")
    # One process may train several runs one after another, each with its own precision.
    AcceleratorState._reset_state()
    on_gpu = torch.cuda.is_available()
    cpuinfo = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    precision, reason = choose_precision(config.precision, on_gpu, first_precision(run_dir), cpuinfo)
    memory = "" if on_gpu else f"; {keep_freed_memory()}"
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=not on_gpu,
            log_with=list(config.trackers) or None,
            project_config=utils.ProjectConfiguration(str(run_dir), str(run_dir / TENSORBOARD_DIR)),
            kwargs_handlers=[
                utils.InitProcessGroupKwargs(timeout=RENDEZVOUS_TIME_LIMIT),
                utils.DistributedDataParallelKwargs(
                    gradient_as_bucket_view=True, comm_hook=EXCHANGES[config.gradient_exchange]
                ),
                utils.GradScalerKwargs(init_scale=first_loss_scale(config)),
            ],
        )
    except dist.DistError as error:
        raise _failed_rendezvous(str(error).splitlines()[0]) from error
    check_world_size(accelerator)
    if accelerator.is_main_process:
        full = "fp64" if config.precision == "fp64" else "fp32"
        named = full if precision == "no" else precision
        log.info("%s: precision %s (%s)%s", run_dir.name, named, reason, memory)
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


def first_precision(run_dir: Path) -> str:
    """What the run's first attempt computed in; empty before it, or where nobody has written it down."""
    attempts = read_attempts(run_dir)
    # before it was recorded, every run on a CPU was in fp32 unless set otherwise
    known = [attempt.precision or ("no" if attempt.device == "cpu" else "") for attempt in attempts]
    return next(filter(None, known), "")


def choose_precision(precision: str, on_gpu: bool, earlier: str = "", cpuinfo: str = "") -> tuple[str, str]:
    """accelerate's name for a precision setting, and why it is that.

    `auto` goes on in what the run began in (`earlier`), whatever machine it comes to; it begins in bf16 where
    the GPU, or the CPU of which `cpuinfo` tells, is faster in it, else in fp32.
    """
    if precision == "fp16" and not on_gpu:
        raise SettingsError("precision fp16 needs a GPU, and none is visible here", "use auto, bf16 or fp32")
    if precision != "auto":
        return {"fp32": "no", "fp64": "no"}.get(precision, precision), "as set"
    if earlier:
        return earlier, "as the run began"
    if on_gpu:
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU has it") if is_native else ("no", "the GPU has no bf16")
    unit = bf16_unit(cpuinfo)
    return ("bf16", f"the CPU has {unit}") if unit else ("no", "the CPU is not faster in bf16")


def bf16_unit(cpuinfo: str) -> str:
    """What makes a CPU faster in bf16 than in fp32, from the text of /proc/cpuinfo; empty if nothing does.

    AVX512-BF16 counts on AMD's only: Intel's, without AMX, does as many products in fp32
    (benchmarks/RESULTS-train.md).
    """
    words = set(cpuinfo.split())
    if "amx_bf16" in words:
        return "AMX"
    if {"AuthenticAMD", "avx512_bf16"} <= words:
        return "AVX512-BF16"
    is_arm = "CPU implementer" in cpuinfo
    return "ARM's bf16" if is_arm and "bf16" in words else ""


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

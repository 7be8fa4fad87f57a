"""The story of a run: set up, resume from the newest whole checkpoint, step, log, save, finish.

Knows no scheduler. It asks `should_stop()` at every step and does not know who answers; when the answer is
yes on any rank, all ranks save at that step boundary and `train` returns False.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data_prep.errors import RunError, SettingsError
from data_prep.files import only_holder, write_json
from vae.config import RunConfig
from vae.provenance import record_attempt
from vae.study import DONE_FILE, is_trained, read_run
from vae.training import checkpoint
from vae.training.accelerator import start_accelerator
from vae.training.collectives import HostCollectives
from vae.training.data_loader import BatchPlan, ImageSplit, batches, load_split
from vae.training.learner import Learner, check_fingerprint
from vae.training.metrics_log import MetricsLog

log = logging.getLogger(__name__)

# Epochs are saved unless that would take more than this share of the time (epochs of a second on a GPU).
SAVING_TIME_SHARE = 0.1
LOCK_FILE = ".training"
# A job that is started again may meet the last breath of the process before it.
LOCK_WAIT_S = 30.0


def never() -> bool:
    """The answer of a site that never asks a run to stop."""
    return False


def train(
    run_dir: Path, should_stop: Callable[[], bool] = never, attempt: dict[str, Any] | None = None
) -> bool:
    """Train the run in `run_dir` from wherever it is; True if it is complete, False if it was stopped.

    Call it in one process per rank with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, or in
    one process without. Sample order, noise and summed loss do not depend on the number of ranks, and every
    call goes on at the exact step of the newest whole checkpoint.

    Args:
        run_dir: folder with run.yaml.
        should_stop: asked at every step on every rank; the first yes saves and stops all ranks.
        attempt: facts about this attempt for provenance.json (job id, nodes, ...).

    Raises:
        RunError: the loss is not finite, a checkpoint cannot be written or does not fit, or the run is being
            trained already.
        DataError: the data are missing, damaged, or not the ones the run began with.
        SettingsError: the settings do not fit the data or the ranks.
    """
    if is_trained(run_dir):
        return True
    attempt = {"started_s": round(time.time(), 3), **(attempt or {})}
    config = read_run(run_dir)
    accelerator = start_accelerator(config, run_dir)
    if not accelerator.is_main_process:
        return run_to_end(run_dir, config, accelerator, should_stop, attempt)
    with only_holder(run_dir / LOCK_FILE, LOCK_WAIT_S) as is_ours:
        if not is_ours:
            raise RunError(
                f"another process is training {run_dir}", "wait for it, or end it; two would spoil the run"
            )
        return run_to_end(run_dir, config, accelerator, should_stop, attempt)


def run_to_end(
    run_dir: Path,
    config: RunConfig,
    accelerator: Accelerator,
    should_stop: Callable[[], bool],
    attempt: dict[str, Any],
) -> bool:
    """Go on with the run until it is complete (True) or stopped (False). Every rank calls this."""
    # set up
    split, val_split = load_split(Path(config.data), "train"), load_split(Path(config.data), "val")
    plan = plan_batches(config, split, accelerator)
    total_steps = min(config.epochs * plan.steps_per_epoch, config.max_steps or 1 << 62)
    learner = Learner(config, accelerator, total_steps)
    collectives = HostCollectives(accelerator)

    # resume
    step, epoch_sums = 0, [0.0, 0.0]
    latest = collectives.broadcast(
        str(checkpoint.find_latest(run_dir) or "") if accelerator.is_main_process else None
    )
    if latest:
        state = checkpoint.load_state(Path(latest))
        check_fingerprint(state["data_fingerprint"], split.fingerprint)
        learner.load(Path(latest), state)
        step, epoch_sums = state["step"], state["epoch_sums"]
    metrics_log = MetricsLog(run_dir, config, accelerator, plan.steps_per_epoch, total_steps)
    if accelerator.is_main_process:
        facts = {
            "world_size": accelerator.num_processes,
            "device": str(accelerator.device.type),
            "from_step": step,
        }
        metrics_log.start(
            step,
            epoch_sums,
            record_attempt(run_dir, split.fingerprint, {**attempt, **facts}),
        )
    saves = SaveClock(config.checkpoint_every_min)

    # step, log, save
    with metrics_log:
        for batch in batches(split, plan, step, total_steps, accelerator.device, config.loader):
            is_logged = (step + 1) % config.log_every_steps == 0
            losses, grad_norm = learner.step(batch, step, plan, wants_norm=is_logged)
            step += 1
            metrics_log.add(losses)
            if is_logged:
                metrics_log.log_step(step, learner.lr(step - 1), grad_norm)
            is_last, ends_epoch = step == total_steps, step % plan.steps_per_epoch == 0
            if ends_epoch:
                is_validated = is_last or step // plan.steps_per_epoch % config.val_every_epochs == 0
                metrics_log.log_epoch(step, timed(learner.validate, val_split) if is_validated else None)
            must_stop, save_is_due = collectives.any(should_stop(), saves.is_due(ends_epoch))
            if must_stop or save_is_due or is_last:
                metrics_log.flush_losses(step)  # a run that went wrong must not replace a good checkpoint
                started = time.monotonic()
                position = {
                    "step": step,
                    "epoch_sums": metrics_log.epoch_sums(),
                    "data_fingerprint": split.fingerprint,
                }
                if accelerator.is_main_process:
                    state = {**learner.state(), **position}
                    checkpoint.save(run_dir, step, learner.model.state_dict(), state, config.keep_checkpoints)
                accelerator.wait_for_everyone()
                metrics_log.log_save(step, saves.saved(time.monotonic() - started))
            if must_stop and not is_last:
                log.info(
                    "%s: stopped at step %d of %d; everything is saved",
                    run_dir.name,
                    step,
                    total_steps,
                )
                return False

    # finish
    if accelerator.is_main_process:
        finish(run_dir, step, step // plan.steps_per_epoch, split.fingerprint)
    accelerator.wait_for_everyone()
    return True


def plan_batches(config: RunConfig, split: ImageSplit, accelerator: Accelerator) -> BatchPlan:
    """Which images this rank sees at which step.

    Raises:
        SettingsError: the images have another size, or the batch does not fit their number or the ranks.
    """
    if split.image_size_px != config.image_size_px:
        raise SettingsError(
            f"the packed images are {split.image_size_px} px wide, the run wants {config.image_size_px}",
            "pack with `--size`, or set `--run.image_size_px`",
        )
    if not accelerator.num_processes * config.accumulate <= config.batch_size <= len(split):
        raise SettingsError(
            f"batch_size {config.batch_size} does not fit {accelerator.num_processes} rank(s), "
            f"accumulate {config.accumulate} and {len(split)} training images",
            "it must be at least ranks x accumulate and at most the number of training images",
        )
    rank, world_size = accelerator.process_index, accelerator.num_processes
    return BatchPlan(len(split), config.batch_size, config.seed, rank, world_size)


def timed(validate: Callable[[ImageSplit], dict[str, float]], split: ImageSplit) -> dict[str, float]:
    """The losses of a validation pass, and what it has cost as `val_seconds`."""
    started = time.monotonic()
    losses = validate(split)
    return {**losses, "val_seconds": round(time.monotonic() - started, 3)}


class SaveClock:
    """When a checkpoint is due: by time, and at the end of an epoch unless saving would take over."""

    def __init__(self, every_min: float) -> None:
        self.every_s = 60 * every_min
        self.last_s = time.monotonic()
        self.cost_s = 0.0

    def is_due(self, ends_epoch: bool) -> bool:
        """Whether to save now."""
        elapsed_s = time.monotonic() - self.last_s
        return elapsed_s >= self.every_s or (ends_epoch and elapsed_s * SAVING_TIME_SHARE >= self.cost_s)

    def saved(self, cost_s: float) -> float:
        """Note a save that took `cost_s` seconds; returns it."""
        self.last_s, self.cost_s = time.monotonic(), cost_s
        return cost_s


def finish(run_dir: Path, step: int, epoch: int, data_fingerprint: str) -> None:
    """Write done.json: the last, atomic act, after which the run counts as complete."""
    folder = checkpoint.folder_of(run_dir, step)  # just saved, or checked and resumed from
    done = {"step": step, "epoch": epoch, "checkpoint": folder.name}
    done |= {
        "weights_sha256": checkpoint.weights_sha256(folder),
        "data_fingerprint": data_fingerprint,
    }
    write_json(run_dir / DONE_FILE, done)

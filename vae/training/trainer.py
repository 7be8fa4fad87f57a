"""The story of a run: set up, resume from the newest whole checkpoint, step, validate, log, save, finish.

Knows no scheduler. It asks `should_stop()` at every step and does not know who answers; when the answer is
yes on any rank, all ranks save at that step boundary and `train` returns False.
"""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from data_prep.errors import RunError, SettingsError
from data_prep.files import only_holder
from data_prep.json_records import write_record
from vae.config import RunConfig
from vae.digests import note_trained
from vae.events import Completed, Saved, StopSignalled, add_event
from vae.losses import bce_per_image, kl_per_image
from vae.provenance import Attempt, this_attempt
from vae.run_dir import DONE_FILE, TRAINING_LOCK_FILE, WEIGHTS_FILE, Done, checkpoint_dir
from vae.study import is_trained, read_run
from vae.training import checkpoint
from vae.training.accelerator import start_accelerator
from vae.training.attempt import start_attempt
from vae.training.collectives import any_rank, reduce_sum
from vae.training.data_loader import BatchPlan, ImageSplit, batches, load_split, step_noise, to_unit
from vae.training.metrics_log import MetricsLog
from vae.training.profiler import StepProfiler
from vae.training.training_state import TrainingState, build_training_state, check_fingerprint

log = logging.getLogger(__name__)

# Epochs are saved unless that would take more than this share of the time (epochs of a second on a GPU).
SAVING_TIME_SHARE = 0.1
# A requeued job may start while its previous process is still exiting: wait so long for the lock.
LOCK_WAIT_S = 30.0


def train(
    run_dir: Path, should_stop: Callable[[], bool] = lambda: False, attempt: Attempt | None = None
) -> bool:
    """Train the run in `run_dir` from wherever it is; True if it is complete, False if it was stopped.

    Call it in one process per rank with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, or in
    one process without. Sample order, noise and summed loss do not depend on the number of ranks, and every
    call goes on at the exact step of the newest whole checkpoint. `should_stop` is asked at every step on
    every rank; the first yes saves and stops all ranks. `attempt` goes into provenance.json.

    Raises RunError where the loss is not finite, a checkpoint cannot be written or does not fit, or another
    process trains the run; DataError where the data are missing, damaged or others than the run began with;
    SettingsError where settings, data and ranks do not fit; DamagedFile for a file no training has written.
    """
    if is_trained(run_dir):
        return True
    attempt = attempt or this_attempt()
    config = read_run(run_dir)
    accelerator = start_accelerator(config, run_dir)
    lock = only_holder(run_dir / TRAINING_LOCK_FILE, LOCK_WAIT_S)
    with lock if accelerator.is_main_process else nullcontext(True) as is_ours:
        if not is_ours:
            hint = "wait for it, or end it; two would spoil the run"
            raise RunError(f"another process is training {run_dir}", hint)
        if accelerator.is_main_process:
            (run_dir / DONE_FILE).unlink(missing_ok=True)  # its weights are lost: it is not complete any more
        return run_to_end(run_dir, config, accelerator, should_stop, attempt)


def run_to_end(
    run_dir: Path,
    config: RunConfig,
    accelerator: Accelerator,
    should_stop: Callable[[], bool],
    attempt: Attempt,
) -> bool:
    """Go on with the run until it is complete (True) or stopped (False). Every rank calls this."""
    # Set up.
    split, val_split = load_split(Path(config.data), "train"), load_split(Path(config.data), "val")
    plan = plan_batches(config, split, accelerator)
    total_steps = min(config.epochs * plan.steps_per_epoch, config.max_steps or 1 << 62)
    state = build_training_state(config, accelerator, total_steps)

    # Resume from the newest whole checkpoint, which rank 0 finds for all.
    step, epoch_sums = 0, [0.0, 0.0]
    latest = checkpoint.find_latest(run_dir) if accelerator.is_main_process else None
    if latest := broadcast_object_list([latest])[0]:
        saved = checkpoint.read_state(latest)
        check_fingerprint(saved["data_fingerprint"], split.fingerprint)
        state.load(latest, saved)
        step, epoch_sums = saved["step"], saved["epoch_sums"]
    metrics_log = MetricsLog(run_dir, config, accelerator, plan.steps_per_epoch, total_steps)
    if accelerator.is_main_process:
        start_attempt(metrics_log, step, epoch_sums, split.fingerprint, attempt)
    saves = SaveClock(config.checkpoint_every_min)

    with metrics_log, StepProfiler(run_dir, config, accelerator) as profiler:
        for batch in batches(split, plan, step, total_steps, accelerator.device, config.loader):
            # Take one optimiser step.
            profiler.begin(step + 1)
            is_logged = (step + 1) % config.log_every_steps == 0
            losses, grad_norm = train_step(state, batch, plan, step, wants_norm=is_logged)
            step += 1
            metrics_log.add(losses)

            # Log.
            if is_logged:
                metrics_log.log_step(step, state.lr(step - 1), grad_norm)
            is_last, ends_epoch = step == total_steps, step % plan.steps_per_epoch == 0
            if ends_epoch:
                is_validated = is_last or step // plan.steps_per_epoch % config.val_every_epochs == 0
                validation = validate(state, val_split) if is_validated else {}
                metrics_log.log_epoch(step, validation)

            # Save, and stop if any rank was asked to.
            must_stop, save_is_due = any_rank(should_stop(), saves.is_due(ends_epoch))
            if must_stop or save_is_due or is_last:
                metrics_log.flush_losses(step)  # a run that went wrong must not replace a good checkpoint
                seconds = save(run_dir, state, step, metrics_log.epoch_sums(), split.fingerprint)
                saves.note(seconds)
                metrics_log.log_save(step, seconds)
            if must_stop and not is_last:
                if accelerator.is_main_process:
                    add_event(run_dir, StopSignalled(step=step))
                log.info("%s: stopped at step %d of %d; everything is saved", run_dir.name, step, total_steps)
                return False

    finish(run_dir, accelerator, step, step // plan.steps_per_epoch, split.fingerprint)
    return True


def train_step(
    state: TrainingState, batch: Tensor, plan: BatchPlan, step: int, wants_norm: bool
) -> tuple[Tensor, Tensor | None]:
    """Take one optimiser step, after `step` others, on this rank's images, uint8 [b, 1, H, W].

    Returns (bce, kl) sums over them in nats, [2], on the device; and the norm of the summed loss's gradient,
    if it is wanted or at hand.
    """
    config, accelerator = state.config, state.accelerator
    noise = noise_of(state, plan, step)
    losses = torch.zeros(2, dtype=torch.float64, device=batch.device)
    parts = list(zip(batch.chunk(config.accumulate), noise.chunk(config.accumulate), strict=True))
    for number, (images, part_noise) in enumerate(parts, 1):
        # Ranks exchange gradients after the last part only.
        with nullcontext() if number == len(parts) else accelerator.no_sync(state.network):
            # Forward.
            targets = to_unit(images, state.dtype)
            output = state.network(targets, part_noise)

            # Loss: a sum over the batch, while DDP averages gradients over ranks.
            bce = bce_per_image(output.logits, targets).sum()
            kl = kl_per_image(output.mean, output.log_variance).sum()
            loss = (bce + config.beta * kl) * accelerator.num_processes

            # Backward.
            accelerator.backward(loss)
            losses += torch.stack([bce.detach(), kl.detach()])

    # Clip, step.
    norm = state.clip(wants_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = state.lr(step)
    state.optimizer.step()
    state.optimizer.zero_grad()
    return losses, norm


@torch.no_grad()
def validate(state: TrainingState, split: ImageSplit) -> dict[str, float]:
    """What an EpochLine says of a validation: means over a whole split, nats per image, and the seconds.

    The losses are those of the mean of q(z|x); each image counts once over all ranks.
    """
    started_s = time.monotonic()
    config, accelerator = state.config, state.accelerator
    own_images = torch.arange(accelerator.process_index, len(split), accelerator.num_processes)
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    state.model.eval()
    for indices in own_images.split(config.batch_size):
        targets = to_unit(split.take(indices).to(accelerator.device), state.dtype)
        with accelerator.autocast():
            output = state.model(targets)
        sums[0] += bce_per_image(output.logits, targets).sum()
        sums[1] += kl_per_image(output.mean, output.log_variance).sum()
    state.model.train()
    bce, kl = (reduce_sum(sums) / len(split)).tolist()
    seconds = round(time.monotonic() - started_s, 3)
    return {"val_loss": bce + config.beta * kl, "val_bce": bce, "val_kl": kl, "val_seconds": seconds}


def noise_of(state: TrainingState, plan: BatchPlan, step: int) -> Tensor:
    """This rank's slice of the global batch's noise, [b, *latent_shape]; empty for `direct`."""
    latent_shape = state.model.latent_shape if state.model.can_sample else (0,)
    noise = step_noise(plan.seed, step, (plan.batch_size, *latent_shape), state.accelerator.device)
    return noise[plan.own_images].to(state.dtype)


def save(
    run_dir: Path, state: TrainingState, step: int, epoch_sums: list[float], data_fingerprint: str
) -> float:
    """Write the checkpoint of `step`; returns the seconds it took. Every rank calls this."""
    started_s = time.monotonic()
    if state.accelerator.is_main_process:
        position = {"step": step, "epoch_sums": epoch_sums, "data_fingerprint": data_fingerprint}
        weights, content = state.model.state_dict(), {**state.to_save(), **position}
        checkpoint.save(run_dir, step, weights, content, state.config.keep_checkpoints)
        add_event(run_dir, Saved(step=step, seconds=round(time.monotonic() - started_s, 3)))
    state.accelerator.wait_for_everyone()
    return time.monotonic() - started_s


def plan_batches(config: RunConfig, split: ImageSplit, accelerator: Accelerator) -> BatchPlan:
    """Which images this rank sees at which step; SettingsError if these do not fit the settings."""
    world_size = accelerator.num_processes
    if split.image_size_px != config.image_size_px:
        raise SettingsError(
            f"the packed images are {split.image_size_px} px wide, the run wants {config.image_size_px}",
            "pack with `--size`, or set `--run.image_size_px`",
        )
    if not world_size * config.accumulate <= config.batch_size <= len(split):
        raise SettingsError(
            f"batch_size {config.batch_size} does not fit {world_size} rank(s), "
            f"accumulate {config.accumulate} and {len(split)} training images",
            "it must be at least ranks x accumulate and at most the number of training images",
        )
    return BatchPlan(len(split), config.batch_size, config.seed, accelerator.process_index, world_size)


class SaveClock:
    """When a checkpoint is due: by time, and at the end of an epoch unless saving would take over."""

    def __init__(self, every_min: float) -> None:
        self.every_s = 60 * every_min
        self.last_s, self.cost_s = time.monotonic(), 0.0

    def is_due(self, ends_epoch: bool) -> bool:
        """Whether to save now."""
        elapsed_s = time.monotonic() - self.last_s
        return elapsed_s >= self.every_s or (ends_epoch and elapsed_s * SAVING_TIME_SHARE >= self.cost_s)

    def note(self, cost_s: float) -> None:
        """Note a save that took `cost_s` seconds and is over now."""
        self.last_s, self.cost_s = time.monotonic(), cost_s


def finish(run_dir: Path, accelerator: Accelerator, step: int, epoch: int, data_fingerprint: str) -> None:
    """Write done.json, the last, atomic act: the run is complete. Every rank calls this."""
    if accelerator.is_main_process:
        folder = checkpoint_dir(run_dir, step)  # just saved, or checked and resumed from
        weights_sha256 = checkpoint.read_meta(folder).sha256[WEIGHTS_FILE]
        done = Done(step, epoch, folder.name, weights_sha256, data_fingerprint)
        note_trained(run_dir, done, checkpoint.digests(folder))
        add_event(run_dir, Completed(step=step))
        write_record(run_dir / DONE_FILE, done)
    accelerator.wait_for_everyone()

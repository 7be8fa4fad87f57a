"""Validation: the losses of a whole split without noise, each image counted once over all ranks."""

import time
from typing import NamedTuple

import torch

from vae.losses import bce_per_image, kl_per_image
from vae.training.collectives import reduce_sum
from vae.training.data_loader import ImageSplit, to_unit
from vae.training.training_state import TrainingState


class ValidationLosses(NamedTuple):
    """Means over a split, in nats per image, and what they have cost."""

    val_loss: float
    val_bce: float
    val_kl: float
    val_seconds: float = 0.0


@torch.no_grad()
def validate(state: TrainingState, split: ImageSplit) -> ValidationLosses:
    """Mean losses over a whole split from the mean of q(z|x). Every rank must call it."""
    started_s = time.monotonic()
    config, accelerator = state.config, state.accelerator
    mine = torch.arange(accelerator.process_index, len(split), accelerator.num_processes)
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    state.model.eval()
    for indices in mine.split(config.batch_size):
        targets = to_unit(split.take(indices).to(accelerator.device), state.dtype)
        with accelerator.autocast():
            output = state.model(targets)
        sums[0] += bce_per_image(output.logits, targets).sum()
        sums[1] += kl_per_image(output.mean, output.log_variance).sum()
    state.model.train()
    bce, kl = (reduce_sum(sums) / len(split)).tolist()
    return ValidationLosses(bce + config.beta * kl, bce, kl, round(time.monotonic() - started_s, 3))

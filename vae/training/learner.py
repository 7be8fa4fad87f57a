"""One optimiser step of the report's objective, the same on any number of ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from data_prep.errors import DataError, RunError
from vae.config import RunConfig
from vae.losses import bce_per_image, kl_per_image
from vae.model import build_model
from vae.training import checkpoint
from vae.training.collectives import reduce_sum
from vae.training.data_loader import BatchPlan, ImageSplit, rank_slice, step_noise, to_unit


class Learner:
    """Model, optimiser and gradient scaler, and how they take a step, are saved and come back."""

    def __init__(self, config: RunConfig, accelerator: Accelerator, total_steps: int) -> None:
        self.config = config
        self.accelerator = accelerator
        self.total_steps = total_steps
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.model = build_model(config).to(accelerator.device, self.dtype)
        self.model.to(memory_format=torch.channels_last)  # 1.5 times faster on a CPU
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
        optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, fused=True)
        network = torch.compile(self.model) if config.compile else self.model
        self.network, self.optimizer = accelerator.prepare(network, optimizer)

    def step(
        self, batch: Tensor, step: int, plan: BatchPlan, wants_norm: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Take one optimiser step on this rank's share of the global batch.

        Args:
            batch: uint8 [b, 1, H, W], the rank's images.
            step: steps taken before this one.
            wants_norm: also return the norm of the summed loss's gradient.

        Returns:
            (bce, kl) sums over the rank's images in nats, [2], on the device; and the norm or None.
        """
        noise = self._noise(step, plan)
        losses = torch.zeros(2, dtype=torch.float64, device=batch.device)
        parts = list(
            zip(
                batch.chunk(self.config.accumulate),
                noise.chunk(self.config.accumulate),
                strict=True,
            )
        )
        for images, part_noise in parts[:-1]:
            with self.accelerator.no_sync(self.network):
                losses += self._backward(images, part_noise)
        losses += self._backward(*parts[-1])  # here the ranks exchange gradients
        norm = self._clip(wants_norm)
        self._set_lr(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses, norm

    def _backward(self, images: Tensor, noise: Tensor) -> Tensor:
        targets = to_unit(images, self.dtype)
        output = self.network(targets, noise)
        bce = bce_per_image(output.logits, targets).sum()
        kl = kl_per_image(output.mean, output.log_variance).sum()
        # DDP averages gradients over ranks; the report's loss is a sum over the batch
        self.accelerator.backward((bce + self.config.beta * kl) * self.accelerator.num_processes)
        return torch.stack([bce.detach(), kl.detach()])

    def _noise(self, step: int, plan: BatchPlan) -> Tensor:
        """This rank's slice of the global batch's noise, [b, *latent_shape]; empty for `direct`."""
        latent_shape = self.model.latent_shape if self.model.can_sample else (0,)
        noise = step_noise(self.config.seed, step, (plan.batch_size, *latent_shape), self.accelerator.device)
        return noise[rank_slice(plan.batch_size, plan.rank, plan.world_size)].to(self.dtype)

    def _clip(self, wants_norm: bool) -> Tensor | None:
        """Clip the gradient if asked for; returns its norm where it is wanted or at hand."""
        if not (self.config.clip_norm or wants_norm):
            return None
        limit = self.config.clip_norm * self.config.batch_size or math.inf  # infinity changes nothing
        return self.accelerator.clip_grad_norm_(self.model.parameters(), limit)

    def lr(self, step: int) -> float:
        """Learning rate of step `step` (0-based): linear warm-up, then constant or half a cosine to 0."""
        config = self.config
        if step < config.warmup_steps:
            return config.lr * (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return config.lr
        done = (step - config.warmup_steps) / max(self.total_steps - config.warmup_steps, 1)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))

    def _set_lr(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)

    @torch.no_grad()
    def validate(self, split: ImageSplit) -> dict[str, float]:
        """Mean losses over a whole split from the mean of q(z|x), nats per image; each image counts once."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = torch.arange(rank, len(split), world)
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        self.model.eval()
        for indices in mine.split(self.config.batch_size):
            targets = to_unit(split.take(indices).to(self.accelerator.device), self.dtype)
            with self.accelerator.autocast():
                output = self.model(targets)
            sums[0] += bce_per_image(output.logits, targets).sum()
            sums[1] += kl_per_image(output.mean, output.log_variance).sum()
        self.model.train()
        bce, kl = (reduce_sum(sums) / len(split)).tolist()
        return {"val_loss": bce + self.config.beta * kl, "val_bce": bce, "val_kl": kl}

    def state(self) -> dict[str, Any]:
        """Everything beside the weights that the next step depends on."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "rng": torch.get_rng_state(),
        }

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Go back to a checkpoint.

        Raises:
            RunError: its weights belong to another model.
        """
        try:
            self.model.load_state_dict(checkpoint.load_weights(folder))
        except RuntimeError as error:
            raise RunError(f"{folder} holds the weights of another model: {error}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])


def check_fingerprint(recorded: str, found: str) -> None:
    """Raise DataError if a run began with other data than it would go on with."""
    if recorded != found:
        raise DataError(
            f"the run began with data {recorded[:12]}, but the packed data are now {found[:12]}",
            "pack the same images again, or start a new --study",
        )

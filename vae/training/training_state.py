"""Model, optimiser and gradient scaler of a run: made, saved and brought back; and the learning rate."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data_prep.errors import DataError, RunError
from vae.config import RunConfig
from vae.model import VAE, build_model
from vae.run_dir import WEIGHTS_FILE
from vae.training.checkpoint import REMOVE_IT, StateDict, first_words, load_weights
from vae.training.eager_adam import EagerAdam


@dataclass
class TrainingState:
    """Everything that an optimiser step changes."""

    config: RunConfig
    accelerator: Accelerator
    total_steps: int
    dtype: torch.dtype
    model: VAE
    network: nn.Module
    """The model as it is called: compiled if asked for, and wrapped for several ranks."""
    optimizer: torch.optim.Optimizer

    def lr(self, step: int) -> float:
        """Learning rate of step `step` (0-based): linear warm-up, then constant or half a cosine to 0."""
        config = self.config
        if step < config.warmup_steps:
            return config.lr * (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return config.lr
        done = (step - config.warmup_steps) / max(self.total_steps - config.warmup_steps, 1)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))

    def clip(self, wants_norm: bool) -> Tensor | None:
        """Clip the summed loss's gradient if asked for; returns its norm where it is wanted or at hand."""
        if not (self.config.clip_norm or wants_norm):
            return None
        limit = self.config.clip_norm * self.config.batch_size or math.inf  # infinity changes nothing
        self.accelerator.unscale_gradients()
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)

    def to_save(self) -> StateDict:
        """Everything beside the weights that the next step depends on."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "rng": torch.get_rng_state(),
        }

    def load(self, folder: Path, state: StateDict) -> None:
        """Go back to a checkpoint; RunError if it belongs to another training."""
        if state["step"] > self.total_steps:
            beyond = f"{folder} is at step {state['step']:,} of a run of {self.total_steps:,}"
            raise RunError(beyond, REMOVE_IT)
        load_weights(folder / WEIGHTS_FILE, self.model)
        settings = [{**group} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            for group, own in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(own)  # they are the run's, whatever the file says
            self._check_moments()
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["rng"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{folder} holds the state of another training: {first_words(error)}"
            raise RunError(problem, REMOVE_IT) from error

    def _check_moments(self) -> None:
        """Raise ValueError unless the optimiser holds Adam's moments, of the shapes of the weights."""
        for weights, moments in self.optimizer.state.items():
            shapes = {name: moments[name].shape for name in moments}
            own = {"step": torch.Size(), "exp_avg": weights.shape, "exp_avg_sq": weights.shape}
            if shapes != own:
                raise ValueError("its moments do not fit the weights")


def build_training_state(config: RunConfig, accelerator: Accelerator, total_steps: int) -> TrainingState:
    """The run's model with its seeded weights and a fresh optimiser, on the accelerator's device."""
    dtype = torch.float64 if config.precision == "fp64" else torch.float32
    model = build_model(config).to(accelerator.device, dtype)
    model.to(memory_format=torch.channels_last)  # 1.5 times faster on a CPU
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    adam = torch.optim.Adam if config.compile else EagerAdam
    optimizer = adam(model.parameters(), lr=config.lr, fused=True)
    called = torch.compile(model) if config.compile else model
    # both are where they belong; to find that out, accelerate would import DTensor for half a second
    network, prepared = accelerator.prepare(called, optimizer, device_placement=[True, True])
    return TrainingState(config, accelerator, total_steps, dtype, model, network, prepared)


def check_fingerprint(recorded: str, found: str) -> None:
    """Raise DataError if a run began with other data than it would go on with."""
    if recorded != found:
        raise DataError(
            f"the run began with data {recorded[:12]}, but the packed data are now {found[:12]}",
            "pack the same images again, or start a new --study",
        )

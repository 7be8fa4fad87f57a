"""The report's 4-layer convolutional VAE and its two siblings, as one module with three latents.

linear   encoder -> two linear layers -> 256 latents -> linear -> decoder     (report, 1st iteration)
direct   encoder ----------------------------------------------> decoder      (report, 2nd iteration)
spatial  encoder -> two 1x1 convolutions -> latent maps -> 1x1 -> decoder      (ours)
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data_prep.errors import RunError
from vae.config import RunConfig

# Keeps exp(log_variance) finite (Rombach et al. 2022, KL first stage); far outside what training reaches.
LOG_VARIANCE_RANGE = (-30.0, 20.0)

NO_SAMPLES = (
    "the direct variant is a deterministic autoencoder: its encoder's map goes straight into the decoder, "
    "so there is no latent distribution and no prior to sample from"
)

NO_DISTRIBUTION = (
    "the direct variant has no latent distribution: its encoder's map goes straight into the decoder"
)


class Output(NamedTuple):
    """What one forward pass returns."""

    logits: Tensor
    """[b, 1, H, W]; sigmoid gives grey values in [0, 1]."""

    mean: Tensor
    """[b, *latent_shape] mean of q(z|x); for `direct` the encoder's map itself."""

    log_variance: Tensor | None
    """[b, *latent_shape] log-variance of q(z|x); None for `direct`."""


class VAE(nn.Module):
    """Convolutional VAE (Kingma & Welling 2014, arXiv 1312.6114) for square grey images.

    Everything that takes part in training goes through `forward`, so that DistributedDataParallel and
    torch.compile see every call.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        widths = config.widths
        map_size = config.image_size_px // 2 ** len(widths)  # 256 -> 16 with four layers
        self.map_shape = (widths[-1], map_size, map_size)
        self.can_sample = config.variant != "direct"
        self.encoder = _encoder(widths)
        self.decoder = _decoder(widths)
        self.to_mean, self.to_log_variance, self.from_latents, self.latent_shape = _latents(
            config, self.map_shape
        )

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Output:
        """Reconstruct `images`, [b, 1, H, W] grey values in [0, 1], from z = mean + std * noise.

        `noise` is standard normal, [b, *latent_shape]; without it, z is the mean.
        """
        mean, log_variance = self.encode(images)
        latents = mean
        if noise is not None and log_variance is not None:
            latents = mean + torch.exp(0.5 * log_variance) * noise
        return Output(self.decode(latents), mean, log_variance)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of q(z|x), each [b, *latent_shape]; `direct` has no log-variance."""
        features = self.encoder(images)  # [b, widths[-1], H/16, W/16]
        if self.to_log_variance is None:
            return features, None
        return self.to_mean(features), self.to_log_variance(features).clamp(*LOG_VARIANCE_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Logits [b, 1, H, W] for latents [b, *latent_shape]."""
        logits: Tensor = self.decoder(self.from_latents(latents))
        return logits

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstructions in [0, 1] from the mean of q(z|x), same shape as `images`."""
        return torch.sigmoid(self(images).logits.float())

    @torch.no_grad()
    def sample(self, latents: Tensor) -> Tensor:
        """Images [b, 1, H, W] in [0, 1] for latents [b, *latent_shape] of N(0, I); RunError for `direct`."""
        if not self.can_sample:
            raise RunError(
                f"cannot sample: {NO_SAMPLES}",
                "score its reconstructions, or use `linear` or `spatial`",
            )
        return torch.sigmoid(self.decode(latents).float())


def _relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)  # no layer before one needs its own output: half the memory traffic


def _encoder(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source, target in zip((1, *widths), widths, strict=False):
        layers += [nn.Conv2d(source, target, kernel_size=4, stride=2, padding=1), _relu()]
    return nn.Sequential(*layers)


def _decoder(widths: tuple[int, ...]) -> nn.Sequential:
    up = (*reversed(widths), 1)
    layers: list[nn.Module] = []
    for source, target in pairwise(up):
        layers += [
            nn.ConvTranspose2d(source, target, kernel_size=4, stride=2, padding=1),
            _relu(),
        ]
    return nn.Sequential(*layers[:-1])  # the last layer gives logits


def _latents(
    config: RunConfig, map_shape: tuple[int, int, int]
) -> tuple[nn.Module, nn.Module | None, nn.Module, tuple[int, ...]]:
    """The layers between encoder and decoder, and the shape of one image's latents."""
    channels, size, _ = map_shape
    if config.variant == "direct":
        return nn.Identity(), None, nn.Identity(), map_shape
    if config.variant == "spatial":
        latents = config.latent_channels
        back = nn.Sequential(nn.Conv2d(latents, channels, kernel_size=1), _relu())
        shape: tuple[int, ...] = (latents, size, size)
        return nn.Conv2d(channels, latents, 1), nn.Conv2d(channels, latents, 1), back, shape
    values = channels * size * size
    back = nn.Sequential(nn.Linear(config.latent_dim, values), _relu(), nn.Unflatten(1, map_shape))
    return (
        nn.Sequential(nn.Flatten(), nn.Linear(values, config.latent_dim)),
        nn.Sequential(nn.Flatten(), nn.Linear(values, config.latent_dim)),
        back,
        (config.latent_dim,),
    )


def build_model(config: RunConfig) -> VAE:
    """The variant's model with weights that depend on the seed alone (drawn on the CPU)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return VAE(config)

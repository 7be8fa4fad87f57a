"""How much samples from the prior look like test images: gfid_* and is_samples."""

from __future__ import annotations

import torch
from accelerate import PartialState
from msgspec.structs import replace
from torch import Tensor

from vae.model import NO_SAMPLES, VAE
from vae.scoring.extractors import Features, to_8bit
from vae.scoring.ignite_metrics import frechet_scores, inception_scores
from vae.scoring.score_cards import Score, no_score
from vae.scoring.subject import Subject
from vae.training.data_loader import mix

SAMPLE_STREAM = 2  # beside data_loader.ORDER_STREAM and data_loader.NOISE_STREAM


def generation_scores(subject: Subject, real: Features) -> dict[str, Score]:
    """Scores of as many samples as there are test images, or why there are none."""
    if not subject.model.can_sample:
        card = replace(subject.feature_card, images="samples from the prior")
        return {key: no_score(NO_SAMPLES, card) for key in ("gfid_paper", "gfid_2048", "is_samples")}
    noise = prior_noise(subject.model, subject.seed, len(subject.test))

    def sample(rows: slice) -> Tensor:
        return to_8bit(subject.model.sample(noise[rows].to(subject.extractor.device, subject.dtype)))

    features = subject.collect("samples", len(noise), sample)
    if not PartialState().is_main_process:
        return {}
    card = replace(subject.feature_card, images="samples from the prior N(0, I)", noise_seed=subject.seed)
    return {
        **frechet_scores("gfid", real, features, card),
        **inception_scores("samples", features, card),
    }


def prior_noise(model: VAE, seed: int, count: int) -> Tensor:
    """Standard normal latents [count, *latent_shape], the same on every rank and device."""
    generator = torch.Generator().manual_seed(mix(seed, SAMPLE_STREAM))
    return torch.randn((count, *model.latent_shape), generator=generator)

"""The scores of a run: reconstructions, samples and training images, each compared with the test images."""

import numpy as np
import torch
from accelerate import PartialState
from ignite.metrics import PSNR
from msgspec.structs import replace
from torch import Tensor

from vae.losses import bce_per_image, kl_per_image
from vae.model import NO_SAMPLES, VAE, Output
from vae.scoring.extractors import Features, to_8bit
from vae.scoring.ignite_metrics import IGNITE, compute_alone, frechet_scores, inception_scores
from vae.scoring.score_cards import Score, no_score, score
from vae.scoring.ssim import WINDOW_PX, ssim_per_image
from vae.scoring.subject import Subject
from vae.training.collectives import reduce_sum
from vae.training.data_loader import ImageSplit, mix, to_unit

COMPUTED_BY = {
    "ssim": f"SSIM as of {IGNITE} in float64, {WINDOW_PX} px Gaussian window in two passes",
    "psnr": f"{IGNITE} PSNR, mean over images",
    "bce": "binary cross-entropy summed over pixels",
    "kl": "KL divergence from N(0, I)",
}
SAMPLE_STREAM = 2  # beside data_loader.ORDER_STREAM and data_loader.NOISE_STREAM
FLOOR_SEED = 0  # the same training images for every run of a study


def compute_scores(subject: Subject, train: ImageSplit) -> dict[str, Score]:
    """All scores on rank 0; none on the others. Every rank must call it."""
    real = subject.real_features(subject.test, "test", np.arange(len(subject.test)))
    return {
        **reconstruction_scores(subject, real),
        **generation_scores(subject, real),
        **baseline_scores(subject, real, train),
    }


def reconstruction_scores(subject: Subject, real: Features) -> dict[str, Score]:
    """What is lost on the way through the latents: rfid_*, is_reconstructions, ssim, psnr, bce and kl."""
    device, count = subject.extractor.device, len(subject.test)
    sums = torch.zeros(len(COMPUTED_BY), dtype=torch.float64, device=device)

    def reconstruct(rows: slice) -> Tensor:
        packed = subject.test.take(np.arange(rows.start, rows.stop))
        targets = to_unit(packed.to(device), subject.dtype)
        with torch.inference_mode():
            output = subject.model(targets)
        images = torch.sigmoid(output.logits.float()).to(targets.dtype)
        sums.add_(paired_sums(output, images, targets).to(device))
        return to_8bit(images)

    features = subject.collect("reconstructions", count, reconstruct)
    means = dict(zip(COMPUTED_BY, (reduce_sum(sums) / count).tolist(), strict=True))
    if not PartialState().is_main_process:
        return {}
    images = {"images": "reconstructions of the test images", "latents": "mean of q(z|x)"}
    feature_card, card = replace(subject.feature_card, **images), replace(subject.card, n=count, **images)
    scores = {
        **frechet_scores("rfid", real, features, feature_card),
        **inception_scores("reconstructions", features, feature_card),
        **{name: score(name, means[name], replace(card, computed_by=by)) for name, by in COMPUTED_BY.items()},
    }
    if not subject.model.can_sample:
        scores["kl"] = no_score("the direct variant has no latent distribution", card)
    return scores


def paired_sums(output: Output, images: Tensor, targets: Tensor) -> Tensor:
    """Sums over a batch of ssim, psnr, bce and kl, float64 [4], on the CPU."""
    psnr = PSNR(data_range=1.0)
    psnr.update((images, targets))
    sums = [
        ssim_per_image(images, targets).sum().item(),
        compute_alone(psnr) * len(images),
        bce_per_image(output.logits, targets).sum().item(),
        kl_per_image(output.mean, output.log_variance).sum().item(),
    ]
    return torch.tensor(sums, dtype=torch.float64)


def generation_scores(subject: Subject, real: Features) -> dict[str, Score]:
    """How far as many samples as test images are from these: gfid_* and is_samples, or why there are none."""
    card = replace(subject.feature_card, images="samples from the prior")
    if not subject.model.can_sample:
        return {key: no_score(NO_SAMPLES, card) for key in ("gfid_paper", "gfid_2048", "is_samples")}
    noise = prior_noise(subject.model, subject.seed, len(subject.test))

    def sample(rows: slice) -> Tensor:
        return to_8bit(subject.model.sample(noise[rows].to(subject.extractor.device, subject.dtype)))

    features = subject.collect("samples", len(noise), sample)
    if not PartialState().is_main_process:
        return {}
    card = replace(card, images="samples from the prior N(0, I)", noise_seed=subject.seed)
    return {**frechet_scores("gfid", real, features, card), **inception_scores("samples", features, card)}


def prior_noise(model: VAE, seed: int, count: int) -> Tensor:
    """Standard normal latents [count, *latent_shape], the same on every rank and device."""
    generator = torch.Generator().manual_seed(mix(seed, SAMPLE_STREAM))
    return torch.randn((count, *model.latent_shape), generator=generator)


def baseline_scores(subject: Subject, real: Features, train: ImageSplit) -> dict[str, Score]:
    """What real images score: floor_* of training images against as many test images, and is_real."""
    count = min(len(train), len(subject.test))
    chosen = np.sort(np.random.default_rng(FLOOR_SEED).permutation(len(train))[:count])
    features = subject.real_features(train, "train", chosen)
    if not PartialState().is_main_process:
        return {}
    as_many = Features(*(tensor[:count] for tensor in real))
    card = subject.feature_card
    of_train = "real images of the train split, in the train split's balance of classes"
    return {
        **frechet_scores("floor", as_many, features, replace(card, images=of_train)),
        **inception_scores("real", real, replace(card, images="real images of the test split")),
    }

"""What is lost on the way through the latents: rfid_*, is_reconstructions, ssim, psnr, bce and kl."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import PartialState
from ignite.metrics import PSNR, SSIM
from msgspec.structs import replace
from torch import Tensor

from vae.losses import bce_per_image, kl_per_image
from vae.model import Output
from vae.scoring.extractors import Features, to_8bit
from vae.scoring.ignite_metrics import IGNITE, compute_alone, frechet_scores, inception_scores
from vae.scoring.score_cards import Score, no_score, score
from vae.scoring.subject import Subject
from vae.training.collectives import reduce_sum
from vae.training.data_loader import to_unit

COMPUTED_BY = {
    "ssim": f"{IGNITE} SSIM, 11 px Gaussian window",
    "psnr": f"{IGNITE} PSNR, mean over images",
    "bce": "binary cross-entropy summed over pixels",
    "kl": "KL divergence from N(0, I)",
}


def reconstruction_scores(subject: Subject, real: Features) -> dict[str, Score]:
    """Scores of the reconstructions of all test images, from one pass; `real` are the images' features."""
    sums = torch.zeros(len(COMPUTED_BY), dtype=torch.float64, device=subject.extractor.device)

    def reconstruct(rows: slice) -> Tensor:
        packed = subject.test.take(np.arange(rows.start, rows.stop))
        targets = to_unit(packed.to(subject.extractor.device), subject.dtype)
        with torch.inference_mode():
            output = subject.model(targets)
        images = torch.sigmoid(output.logits.float()).to(targets.dtype)
        sums.add_(paired_sums(output, images, targets).to(sums.device))
        return to_8bit(images)

    features = subject.collect("reconstructions", len(subject.test), reconstruct)
    means = dict(zip(COMPUTED_BY, (reduce_sum(sums) / len(subject.test)).tolist(), strict=True))
    if not PartialState().is_main_process:
        return {}
    images = {"images": "reconstructions of the test images", "latents": "mean of q(z|x)"}
    feature_card = replace(subject.feature_card, **images)
    card = replace(subject.card, n=len(subject.test), **images)
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
    sums = []
    for metric in (SSIM(data_range=1.0), PSNR(data_range=1.0)):
        metric.update((images.cpu(), targets.cpu()))
        sums.append(compute_alone(metric) * len(images))
    sums.append(bce_per_image(output.logits, targets).sum().item())
    sums.append(kl_per_image(output.mean, output.log_variance).sum().item())
    return torch.tensor(sums, dtype=torch.float64)

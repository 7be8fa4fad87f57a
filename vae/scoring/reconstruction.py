"""What is lost on the way through the latents: each test image beside what the model makes of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import gather_object
from msgspec.structs import replace
from torch import Tensor

from vae.losses import bce_per_image, entropy_per_image, kl_per_image
from vae.model import NO_DISTRIBUTION, Output
from vae.scoring.diagnosis import diagnosis_scores
from vae.scoring.extractors import Features, to_8bit
from vae.scoring.feature_scores import distance_scores, inception_scores
from vae.scoring.health import LatentMoments, health_scores
from vae.scoring.resampling import Measured, mean_score, without
from vae.scoring.ssim import WINDOW_PX, ssim_per_image
from vae.scoring.subject import LATENT_STREAM, Subject
from vae.training.data_loader import to_unit

Array = npt.NDArray[np.float64]

FLOAT_INPUT = "float reconstruction and image in [0, 1], not the 8 bit of the feature scores"
COMPUTED_BY = {
    "ssim": f"SSIM as of pytorch-ignite, in float64: {WINDOW_PX} px Gaussian window, sigma 1.5, reflected at "
    "the borders, mean over images",
    "psnr": "10 log10(1 / (mean squared error + 1e-10)) of each image, at most 100 dB; mean over images",
    "bce": "binary cross-entropy summed over pixels, mean over images",
}
PIXEL_KEYS = ("ssim", "psnr", "bce")


@dataclass(frozen=True)
class Pass:
    """What one pass of the test images through the model gives."""

    features: Features
    """Of the reconstructions."""
    values: dict[str, Array]
    """Per image, float64 [n]: ssim, psnr, bce, kl, and the entropy of the image itself."""
    moments: LatentMoments | None
    """Of q(z|x); None where there is no distribution."""
    judged: Array | None
    """What classifiers say of the reconstructions, [classifiers, n, classes]; None where there are none."""


def reconstruction_scores(subject: Subject, real: Features, found: Pass) -> dict[str, Measured]:
    """From the mean of q(z|x): rfid_*, is_reconstructions, ssim, psnr, bce, kl, and the model's health."""
    latents = "mean of q(z|x)" if subject.model.can_sample else "the encoder's map: no distribution"
    scores = scores_of_pass(subject, real, found, "", latents)
    return scores | health_scores(subject, found.values, found.moments)


def sampled_scores(subject: Subject, real: Features) -> dict[str, Measured]:
    """The same from latents drawn from q(z|x), as the study's own forward pass does."""
    found = pass_through(subject, is_sampled=True) if subject.model.can_sample else None
    if found is None:
        of_features = [f"rfid_sampled_{kind}" for kind in ("paper", "2048", "kid")]
        of_features.append("is_reconstructions_sampled")
        of_pixels = [f"{key}_sampled" for key in (*PIXEL_KEYS, "auc", "auc_drop")]
        scores = without(of_features, NO_DISTRIBUTION, subject.feature_card)
        return scores | without(of_pixels, NO_DISTRIBUTION, subject.card)
    return scores_of_pass(subject, real, found, "_sampled", "drawn from q(z|x)")


def pass_through(subject: Subject, is_sampled: bool) -> Pass:
    """Reconstruct every test image, each rank its own, and measure each. Every rank must call it."""
    device, count = subject.extractor.device, len(subject.test)
    noise = subject.noise(count, LATENT_STREAM) if is_sampled else None
    measured: list[Tensor] = []
    judged: list[Tensor] = []
    moments = LatentMoments(subject.model, device) if subject.model.can_sample else None

    def reconstruct(rows: slice) -> Tensor:
        packed = subject.test.take(np.arange(rows.start, rows.stop))
        targets = to_unit(packed.to(device), subject.dtype)
        drawn = None if noise is None else noise[rows].to(device, subject.dtype)
        with torch.inference_mode():
            output = subject.model(targets, drawn)
            images = torch.sigmoid(output.logits.float()).to(targets.dtype)
            measured.append(per_image(output, images, targets).cpu())
            if moments is not None:
                moments.add(output)
        grey = to_8bit(images)
        if subject.classifiers:
            judged.append(subject.classifiers.probabilities(grey, device).transpose(0, 1))
        return grey

    features = subject.collect(
        "reconstructions, sampled" if is_sampled else "reconstructions", count, reconstruct
    )
    columns = torch.cat(gather_object(measured) or [torch.empty(0, len(VALUES))]).T.numpy()
    if moments is not None:
        moments.add_up()
    found = torch.cat(gather_object(judged)).transpose(0, 1).numpy() if subject.classifiers else None
    return Pass(features, dict(zip(VALUES, columns, strict=True)), moments, found)


VALUES = ("ssim", "psnr", "bce", "kl", "entropy")


def per_image(output: Output, images: Tensor, targets: Tensor) -> Tensor:
    """The values of a batch, float64 [b, 5] in the order of VALUES."""
    squared = (images.double() - targets.double()).square().flatten(1).mean(1)
    columns = (
        ssim_per_image(images, targets),
        -10 * torch.log10(squared + 1e-10),
        bce_per_image(output.logits, targets),
        kl_per_image(output.mean, output.log_variance),
        entropy_per_image(targets),
    )
    return torch.stack([column.double() for column in columns], 1)


def scores_of_pass(
    subject: Subject, real: Features, found: Pass, suffix: str, latents: str
) -> dict[str, Measured]:
    """The scores of one pass, with `suffix` in their keys."""
    what = {"images": "reconstructions of the test images, beside these", "latents": latents}
    if suffix:
        what["noise_seed"] = subject.seed  # type: ignore[assignment]
    count, halves = len(subject.test), subject.halves
    distance = replace(subject.feature_card, n_real=count, n_fake=count, **what)
    pair = replace(subject.card, n=count, input=FLOAT_INPUT, **what)
    scores = distance_scores(f"rfid{suffix}", real, found.features, distance, (halves, halves))
    card = replace(subject.feature_card, n=count, **what)
    scores |= inception_scores(f"is_reconstructions{suffix}", found.features, card, halves)
    for key in PIXEL_KEYS:
        card = replace(pair, computed_by=COMPUTED_BY[key])
        scores[f"{key}{suffix}"] = mean_score(f"{key}{suffix}", found.values[key], card, halves)
    scores |= diagnosis_scores(subject, found.judged, suffix, replace(subject.card, **what))
    return scores

"""What the latents are: how much they carry, how many are in use, how far they are from the prior."""

import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import replace
from torch import Tensor

from vae.model import NO_DISTRIBUTION, VAE, Output
from vae.scoring.resampling import Measured, mean_score, without
from vae.scoring.score_cards import score
from vae.scoring.subject import Subject
from vae.training.collectives import reduce_sum

# A latent is active if its mean varies more than this over images (Burda et al. 2016, arXiv 1509.00519).
ACTIVE_VARIANCE = 0.01
PRIOR_KEYS = ("kl", "active_units", "posterior_gap")


class LatentMoments:
    """Sums over images of each latent's mean, its square, and its variance under q(z|x)."""

    def __init__(self, model: VAE, device: torch.device) -> None:
        self.count = 0
        self.sums = torch.zeros(3, int(np.prod(model.latent_shape)), dtype=torch.float64, device=device)

    def add(self, output: Output) -> None:
        """Take in a batch."""
        assert output.log_variance is not None
        mean, variance = output.mean.double().flatten(1), output.log_variance.double().exp().flatten(1)
        self.count += len(mean)
        self.sums += torch.stack((mean.sum(0), mean.square().sum(0), variance.sum(0)))

    def add_up(self) -> None:
        """Over all ranks, each of which must call it."""
        counted = torch.full((1,), float(self.count), dtype=torch.float64, device=self.sums.device)
        self.sums, self.count = reduce_sum(self.sums), round(reduce_sum(counted).item())

    @property
    def of_means(self) -> tuple[Tensor, Tensor]:
        """Mean and variance over images of each latent's mean, float64 [latents]."""
        first, second = self.sums[0] / self.count, self.sums[1] / self.count
        return first, (second - first.square()).clamp(min=0)

    @property
    def active_share(self) -> float:
        """Share of the latents whose mean tells images apart."""
        return (self.of_means[1] > ACTIVE_VARIANCE).double().mean().item()

    @property
    def posterior_gap(self) -> float:
        """KL divergence in nats of the aggregate posterior from N(0, I), each latent taken for a Gaussian."""
        mean, variance = self.of_means
        whole = variance + self.sums[2] / self.count
        return 0.5 * (mean.square() + whole - 1 - whole.log()).sum().item()


def health_scores(
    subject: Subject, values: dict[str, npt.NDArray[np.float64]], moments: LatentMoments | None
) -> dict[str, Measured]:
    """kl, bce_excess, latent_ratio, active_units and posterior_gap, or why there is no such thing."""
    count, halves, model = len(subject.test), subject.halves, subject.model
    card = replace(subject.card, n=count, images="test images through the encoder")
    latents, pixels = int(np.prod(model.latent_shape)), subject.test.image_size_px**2
    excess = replace(
        card, computed_by="binary cross-entropy minus its minimum, the entropy of the grey values"
    )
    ratio = replace(card, n=None, computed_by=f"{latents:,} latents to {pixels:,} pixels")
    scores = {
        "bce_excess": mean_score("bce_excess", values["bce"] - values["entropy"], excess, halves),
        "latent_ratio": Measured(score("latent_ratio", latents / pixels, ratio)),
    }
    if moments is None:
        return scores | without(PRIOR_KEYS, NO_DISTRIBUTION, card)
    varies = f"share of {latents:,} latents whose mean has a variance above {ACTIVE_VARIANCE}"
    active = replace(card, computed_by=varies)
    gap = replace(
        card, computed_by="KL divergence of the aggregate posterior from N(0, I), latents as Gaussians"
    )
    kl = replace(card, computed_by="KL divergence from N(0, I), mean over images")
    scores["kl"] = mean_score("kl", values["kl"], kl, halves)
    scores["active_units"] = Measured(score("active_units", moments.active_share, active))
    scores["posterior_gap"] = Measured(score("posterior_gap", moments.posterior_gap, gap))
    return scores

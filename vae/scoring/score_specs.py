"""Every score there is: its names, its unit, which way is better, and the score of real images beside it.

rfid_*     distance of the reconstructions to the test images they were made from
gfid_*     of as many samples from the prior to the test images
floor_*    of as many training images to the test images: what a perfect sampler could reach
floor_train_*   between two sets of training images: the floor without what tells test from training
is_*       Inception scores; that of the test images is the baseline
ssim, psnr, bce   means over the test images of what each reconstruction loses
*_sampled  of reconstructions from latents drawn from q(z|x); all others are from its mean
auc, sensitivity, specificity, brier, decisions_changed, auc_drop   what classifiers of the label say of
           reconstructions; *_real of the test images themselves; see diagnosis.py
kl, active_units, posterior_gap, bce_excess, latent_ratio   what the latents are

*_paper    pytorch-ignite's own FID on 1000 softmax probabilities, as the published study used it: FID-1000
*_2048     the usual Frechet distance on the 2048 activations of the last pooling layer
*_kid      the kernel distance on the same
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

Section = Enum(
    "Section", ["PAPER", "RECONSTRUCTION", "SAMPLED", "GENERATION", "DIAGNOSIS", "HEALTH", "BASELINE"]
)
Better = Enum("Better", ["LOWER", "HIGHER", "NEITHER"])
PAPER, RECONSTRUCTION, SAMPLED, GENERATION, DIAGNOSIS, HEALTH, BASELINE = Section
LOWER, HIGHER, NEITHER = Better

IN_WORDS = {"IS": "Inception score", "BCE": "cross-entropy", "KL": "KL divergence"}
DRAWN = "sampled latents"
# Less than this share of active latents, and most of the model lies idle.
FEW_ACTIVE = 0.05


@dataclass(frozen=True)
class ScoreSpec:
    """What is known of a score before it is computed."""

    key: str
    section: Section
    better: Better
    metric: str
    of: str = ""
    """The images it is computed on, where there are several kinds."""
    unit: str = ""
    baseline: str = ""
    """Key of the score of real images that stands in its column; empty if there is none."""
    is_in_status: bool = True

    @property
    def head(self) -> str:
        """Its column in the report: `FID, samples` or `PSNR (dB)`."""
        name = f"{self.metric}, {self.of}" if self.of else self.metric
        return f"{name} ({self.unit})" if self.unit else name

    @property
    def short_head(self) -> str:
        """Its column in `status`, which has little room."""
        lines = (self.metric, self.of.replace("reconstructions", "reconstr."), self.unit)
        return "\n".join(filter(None, lines))

    @property
    def in_words(self) -> str:
        """What a sentence calls it: `FID of samples`."""
        metric = IN_WORDS.get(self.metric, self.metric)
        return f"{metric} of {self.of}" if self.of else metric


# In the order of the columns.
SPECS = (
    ScoreSpec("rfid_paper", PAPER, LOWER, "FID-1000", "reconstructions"),
    ScoreSpec("rfid_sampled_paper", PAPER, LOWER, "FID-1000", DRAWN, is_in_status=False),
    ScoreSpec("gfid_paper", PAPER, LOWER, "FID-1000", "samples", baseline="floor_paper"),
    ScoreSpec("is_reconstructions", PAPER, NEITHER, "IS", "reconstructions", baseline="is_real"),
    ScoreSpec(
        "is_reconstructions_sampled", PAPER, NEITHER, "IS", DRAWN, baseline="is_real", is_in_status=False
    ),
    ScoreSpec("is_samples", PAPER, NEITHER, "IS", "samples", baseline="is_real"),
    ScoreSpec("rfid_2048", RECONSTRUCTION, LOWER, "FID-2048", "reconstructions"),
    ScoreSpec("rfid_kid", RECONSTRUCTION, LOWER, "KID", "reconstructions", is_in_status=False),
    ScoreSpec("ssim", RECONSTRUCTION, HIGHER, "SSIM"),
    ScoreSpec("psnr", RECONSTRUCTION, HIGHER, "PSNR", unit="dB"),
    ScoreSpec("bce", RECONSTRUCTION, LOWER, "BCE", unit="nats/image", is_in_status=False),
    ScoreSpec("rfid_sampled_2048", SAMPLED, LOWER, "FID-2048", DRAWN, is_in_status=False),
    ScoreSpec("rfid_sampled_kid", SAMPLED, LOWER, "KID", DRAWN, is_in_status=False),
    ScoreSpec("ssim_sampled", SAMPLED, HIGHER, "SSIM", DRAWN, is_in_status=False),
    ScoreSpec("psnr_sampled", SAMPLED, HIGHER, "PSNR", DRAWN, "dB", is_in_status=False),
    ScoreSpec("bce_sampled", SAMPLED, LOWER, "BCE", DRAWN, "nats/image", is_in_status=False),
    ScoreSpec("gfid_2048", GENERATION, LOWER, "FID-2048", "samples", baseline="floor_2048"),
    ScoreSpec("gfid_kid", GENERATION, LOWER, "KID", "samples", baseline="floor_kid", is_in_status=False),
    ScoreSpec("auc", DIAGNOSIS, HIGHER, "AUC", "reconstructions", baseline="auc_real", is_in_status=False),
    ScoreSpec("auc_sampled", DIAGNOSIS, HIGHER, "AUC", DRAWN, baseline="auc_real", is_in_status=False),
    ScoreSpec("auc_drop", DIAGNOSIS, LOWER, "loss of AUC", is_in_status=False),
    ScoreSpec("auc_drop_sampled", DIAGNOSIS, LOWER, "loss of AUC", DRAWN, is_in_status=False),
    ScoreSpec("sensitivity", DIAGNOSIS, HIGHER, "sensitivity", "", "", "sensitivity_real", False),
    ScoreSpec("specificity", DIAGNOSIS, HIGHER, "specificity", "", "", "specificity_real", False),
    ScoreSpec("brier", DIAGNOSIS, LOWER, "Brier score", "", "", "brier_real", False),
    ScoreSpec("decisions_changed", DIAGNOSIS, LOWER, "decisions changed", unit="share", is_in_status=False),
    ScoreSpec("kl", HEALTH, NEITHER, "KL", unit="nats/image", is_in_status=False),
    ScoreSpec("active_units", HEALTH, NEITHER, "active latents", unit="share", is_in_status=False),
    ScoreSpec("posterior_gap", HEALTH, LOWER, "gap to the prior", unit="nats", is_in_status=False),
    ScoreSpec("bce_excess", HEALTH, LOWER, "BCE above its minimum", unit="nats/image", is_in_status=False),
    ScoreSpec("latent_ratio", HEALTH, NEITHER, "latents per pixel", is_in_status=False),
    ScoreSpec("floor_paper", BASELINE, LOWER, "FID-1000", "real images", is_in_status=False),
    ScoreSpec("floor_2048", BASELINE, LOWER, "FID-2048", "real images", is_in_status=False),
    ScoreSpec("floor_kid", BASELINE, LOWER, "KID", "real images", is_in_status=False),
    ScoreSpec("floor_train_paper", BASELINE, LOWER, "FID-1000", "training images", is_in_status=False),
    ScoreSpec("floor_train_2048", BASELINE, LOWER, "FID-2048", "training images", is_in_status=False),
    ScoreSpec("floor_train_kid", BASELINE, LOWER, "KID", "training images", is_in_status=False),
    ScoreSpec("auc_real", BASELINE, HIGHER, "AUC", "real images", is_in_status=False),
    ScoreSpec("sensitivity_real", BASELINE, HIGHER, "sensitivity", "real images", is_in_status=False),
    ScoreSpec("specificity_real", BASELINE, HIGHER, "specificity", "real images", is_in_status=False),
    ScoreSpec("brier_real", BASELINE, LOWER, "Brier score", "real images", is_in_status=False),
    ScoreSpec("is_real", BASELINE, NEITHER, "IS", "real images", is_in_status=False),
)
SPEC = {spec.key: spec for spec in SPECS}


def health_warning(values: Mapping[str, float]) -> str:
    """What is wrong with a model's latents, in plain words; empty if nothing is."""
    share = values.get("active_units")
    if share == 0:
        return (
            "posterior collapse: no latent tells images apart, so all reconstructions are alike; "
            "lower --run.beta, or train longer"
        )
    if share is not None and share < FEW_ACTIVE:
        return f"near collapse: only {share:.1%} of the latents tell images apart; lower --run.beta"
    return ""

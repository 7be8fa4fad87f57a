"""Every score there is: its names, its unit, which way is better, and the score of real images beside it.

rfid_*     Frechet distance of the reconstructions to the test images they were made from
gfid_*     of as many samples from the prior to the test images
floor_*    of as many training images to the test images: what a perfect sampler could reach
is_*       Inception scores; that of the test images is the baseline
ssim, psnr, bce, kl   means over the test images of what each reconstruction loses

*_paper    pytorch-ignite's own FID and InceptionScore on 1000 softmax probabilities, as in the report
*_2048     the usual Frechet distance on the 2048 activations of the last pooling layer
"""

from dataclasses import dataclass
from enum import Enum

Section = Enum("Section", ["PAPER", "OTHER", "BASELINE"])  # the report's tables; baselines are a row of both
Better = Enum("Better", ["LOWER", "HIGHER"])
PAPER, OTHER, BASELINE = Section
LOWER, HIGHER = Better

IN_WORDS = {"IS": "Inception score", "BCE": "cross-entropy", "KL": "KL divergence"}


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
    ScoreSpec("rfid_paper", PAPER, LOWER, "FID", "reconstructions"),
    ScoreSpec("gfid_paper", PAPER, LOWER, "FID", "samples", baseline="floor_paper"),
    ScoreSpec("is_reconstructions", PAPER, HIGHER, "IS", "reconstructions", baseline="is_real"),
    ScoreSpec("is_samples", PAPER, HIGHER, "IS", "samples", baseline="is_real"),
    ScoreSpec("rfid_2048", OTHER, LOWER, "FID-2048", "reconstructions"),
    ScoreSpec("gfid_2048", OTHER, LOWER, "FID-2048", "samples", baseline="floor_2048"),
    ScoreSpec("ssim", OTHER, HIGHER, "SSIM"),
    ScoreSpec("psnr", OTHER, HIGHER, "PSNR", unit="dB"),
    ScoreSpec("bce", OTHER, LOWER, "BCE", unit="nats/image", is_in_status=False),
    ScoreSpec("kl", OTHER, LOWER, "KL", unit="nats/image", is_in_status=False),
    ScoreSpec("floor_paper", BASELINE, LOWER, "FID", "real images", is_in_status=False),
    ScoreSpec("floor_2048", BASELINE, LOWER, "FID-2048", "real images", is_in_status=False),
    ScoreSpec("is_real", BASELINE, HIGHER, "IS", "real images", is_in_status=False),
)
SPEC = {spec.key: spec for spec in SPECS}

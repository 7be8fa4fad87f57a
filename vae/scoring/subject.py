"""What the scores of a run are computed from: its model, the test images and the extractor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace
from torch import Tensor

from vae.model import VAE
from vae.scoring.collect_features import collect_features
from vae.scoring.extractors import Extractor, Features
from vae.scoring.score_cards import ScoreCard
from vae.training.data_loader import ImageSplit


@dataclass(frozen=True)
class Subject:
    """A trained run. Every rank must ask for the same scores of it; rank 0 alone gets them."""

    name: str
    model: VAE
    seed: int
    test: ImageSplit
    extractor: Extractor
    card: ScoreCard
    """What the cards of all its scores say: which split, weights and data."""

    @property
    def feature_card(self) -> ScoreCard:
        """What the cards of scores on features say: which extractor, too."""
        extractor = self.extractor
        return replace(
            self.card,
            extractor=extractor.name,
            extractor_sha256=extractor.weights_sha256,
            label=extractor.label,
            input=extractor.input,
        )

    def collect(self, what: str, num_images: int, make_images: Callable[[slice], Tensor]) -> Features:
        """As `collect_features`; `what` is counted."""
        return collect_features(self.extractor, f"{self.name}: {what}", num_images, make_images)

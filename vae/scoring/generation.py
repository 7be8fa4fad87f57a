"""How far samples are from the test images: gfid_* and is_samples."""

from msgspec.structs import replace
from torch import Tensor

from vae.model import NO_SAMPLES
from vae.scoring.extractors import Features, to_8bit
from vae.scoring.feature_scores import distance_scores, inception_scores
from vae.scoring.resampling import Halves, Measured, without
from vae.scoring.subject import SAMPLE_STREAM, Subject

KEYS = ("gfid_paper", "gfid_2048", "gfid_kid", "is_samples")


def generation_scores(subject: Subject, real: Features) -> dict[str, Measured]:
    """Scores of as many samples from the prior as there are test images, or why there are none."""
    card = replace(subject.feature_card, images="samples from the prior N(0, I), beside the test images")
    if not subject.model.can_sample:
        return without(KEYS, NO_SAMPLES, card)
    noise = subject.noise(len(subject.test), SAMPLE_STREAM)

    def sample(rows: slice) -> Tensor:
        return to_8bit(subject.model.sample(noise[rows].to(subject.extractor.device, subject.dtype)))

    features = subject.collect("samples", len(noise), sample)
    card, count = replace(card, noise_seed=subject.seed), len(noise)
    of_samples = Halves.of_images(count, SAMPLE_STREAM)
    distance = replace(card, n_real=count, n_fake=count)
    scores = distance_scores("gfid", real, features, distance, (subject.halves, of_samples))
    return scores | inception_scores("is_samples", features, replace(card, n=count), of_samples)

"""scores.json: every score of a run, with the card that says how it was made. Imports no torch."""

import math
from pathlib import Path

import msgspec

from data_prep.json_records import Record, read_record
from vae.run_dir import DRAWS_FILE, SCORES_FILE, ScoresSummary
from vae.scoring.score_specs import SPEC


class ScoreCard(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How a score was made; what does not apply to it is left out."""

    n_real: int | None = None
    """Real images of a distance."""
    n_fake: int | None = None
    """Reconstructions or samples of a distance."""
    n_train: int | None = None
    """Training images of a distance between real images."""
    n: int | None = None
    """Images, or pairs of an image and its reconstruction, of a score that is no distance."""
    split: str = ""
    """Of the real images."""
    images: str = ""
    """What the score is of, and what it was compared with."""
    latents: str = ""
    noise_seed: int | None = None
    extractor: str = ""
    extractor_sha256: str = ""
    label: str = ""
    """Empty if the score can be compared with other people's, else the words it must carry."""
    input: str = ""
    """How an image becomes the extractor's input."""
    checkpoint_sha256: str = ""
    data_fingerprint: str = ""
    layer: str = ""
    computed_by: str = ""
    interval: str = ""
    """What lies between the score's `low` and `high`, and how that was found."""
    exact_value: float | None = None
    """By formulas of our own in float64; None if `value` is that."""
    note: str = ""

    def facts(self) -> dict[str, str]:
        """What the card says, as text, by name."""
        return {name: str(fact) for name, fact in msgspec.to_builtins(self).items()}


class Score(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A number with its card, or the reason why there is none."""

    value: float | None
    unit: str
    reason: str = ""
    low: float | None = None
    """The interval's ends; the card says of which kind it is."""
    high: float | None = None
    card: ScoreCard = msgspec.field(name="protocol")


class Draws(Record, frozen=True, kw_only=True):
    """draws.json: each score on the same random halves of the test patients, to compare runs in pairs."""

    IF_DAMAGED = ScoresSummary.IF_DAMAGED

    data_fingerprint: str
    checkpoint_sha256: str
    extractor_sha256: str
    to_whole: float
    """See intervals.half_width."""
    of_each: dict[str, list[float]] = msgspec.field(default_factory=dict)
    """Of each classifier, for a score that is their mean."""
    draws: dict[str, list[float]]

    def is_of(self, scores: "RunScores") -> bool:
        """Whether they were made together with these scores."""
        own = self.data_fingerprint, self.checkpoint_sha256, self.extractor_sha256
        return own == (scores.data_fingerprint, scores.checkpoint_sha256, scores.extractor_sha256)


class RunScores(Record, frozen=True, kw_only=True):
    """What scores.json holds."""

    IF_DAMAGED = ScoresSummary.IF_DAMAGED

    extractor: str
    extent: str = "full"
    """`full` or `fast`: which of the scores were asked for."""
    label: str
    """What scores on features must carry with them, as in `smoke, not comparable`."""
    extractor_sha256: str
    checkpoint_sha256: str
    data_fingerprint: str
    step: int
    epoch: int
    device: str
    world_size: int
    seconds: float
    host_gb: float | None = None
    """Peak memory of the process with rank 0, in GiB."""
    versions: dict[str, str]
    scores: dict[str, Score]

    @property
    def values(self) -> dict[str, float]:
        """The scores that could be had, by key."""
        return {key: score.value for key, score in self.scores.items() if score.value is not None}

    def value(self, key: str) -> float | None:
        """The number, or None where there is none."""
        return self.scores[key].value if key in self.scores else None


def read_scores(run_dir: Path) -> RunScores | None:
    """A run's scores.json, None if there is none; raises DamagedFile if it holds anything else."""
    return read_record(run_dir / SCORES_FILE, RunScores)


def read_draws(run_dir: Path) -> Draws | None:
    """A run's draws.json, None if there is none; raises DamagedFile if it holds anything else."""
    return read_record(run_dir / DRAWS_FILE, Draws)


def score(key: str, value: float, card: ScoreCard) -> Score:
    """A number with its unit and card; JSON has none that is not finite, so that becomes a reason."""
    if not math.isfinite(value):
        return no_score(f"the result is not finite ({value})", card)
    return Score(value=float(value), unit=SPEC[key].unit, card=card)


def no_score(reason: str, card: ScoreCard) -> Score:
    """The place of a number that cannot be had, and why."""
    return Score(value=None, unit="", reason=reason, card=card)

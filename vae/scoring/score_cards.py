"""scores.json: every score of a run, with the card that says how it was made. Imports no torch."""

import math
from pathlib import Path

import msgspec

from data_prep.json_records import Record, read_record
from vae.run_dir import SCORES_FILE, ScoresSummary
from vae.scoring.score_specs import SPEC


class ScoreCard(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How a score was made; what does not apply to it is left out."""

    n_real: int | None = None
    """Real images of a distance."""
    n_fake: int | None = None
    n: int | None = None
    """Pairs of an image and its reconstruction."""
    split: str = ""
    images: str = ""
    """What was compared with the images of `split`."""
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
    card: ScoreCard = msgspec.field(name="protocol")


class RunScores(Record, frozen=True, kw_only=True):
    """What scores.json holds."""

    IF_DAMAGED = ScoresSummary.IF_DAMAGED

    extractor: str
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

    def value(self, key: str) -> float | None:
        """The number, or None where there is none."""
        return self.scores[key].value if key in self.scores else None


def read_scores(run_dir: Path) -> RunScores | None:
    """A run's scores.json, None if there is none; raises DamagedFile if it holds anything else."""
    return read_record(run_dir / SCORES_FILE, RunScores)


def score(key: str, value: float, card: ScoreCard) -> Score:
    """A number with its unit and card; JSON has none that is not finite, so that becomes a reason."""
    if not math.isfinite(value):
        return no_score(f"the result is not finite ({value})", card)
    return Score(value=float(value), unit=SPEC[key].unit, card=card)


def no_score(reason: str, card: ScoreCard) -> Score:
    """The place of a number that cannot be had, and why."""
    return Score(value=None, unit="", reason=reason, card=card)

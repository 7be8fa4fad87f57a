"""How sure a score is: what it would be on other test patients.

A score is computed again on many random halves of the patients. Their spread is that of the score itself over
test sets of this size: a half has twice the variance, and shares half of it with the whole (delete-half
jackknife; Shao & Wu 1989, Ann. Statist. 17, 1176). Without replacement, for the usual bootstrap puts images
into a set twice, which biases a Frechet distance upwards. Patients, not images: those of one are alike. Where
two sets are alike, distances near 0 have intervals that are too long, not too short.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from accelerate import PartialState
from accelerate.utils import gather_object
from msgspec.structs import replace

from vae.scoring.intervals import LEVEL, half_width
from vae.scoring.score_cards import Score, ScoreCard, no_score, score

Array = npt.NDArray[np.float64]

DRAWS = 100
# A Frechet distance of many images takes a second, and so do those of its halves.
MANY_IMAGES, DRAWS_OF_MANY = 2000, 25
# With fewer patients the spread of halves says nothing.
MIN_PATIENTS = 10
SEED = 0


class Measured(NamedTuple):
    """A score, and its values on the halves, by which two runs on the same patients can be compared."""

    score: Score
    draws: Array | None = None
    of_each: tuple[float, ...] = ()
    """Of each classifier, where it is a mean over several."""


@dataclass(frozen=True, eq=False)
class Halves:
    """The same random halves of a set's patients for every score of every run."""

    patients: npt.NDArray[np.int64]
    """A number for each image's patient, [n]."""
    unit: str = "patients"
    """What `patients` counts: images, where nobody knows the patients."""
    stream: int = 0
    """Sets that are not paired take different ones."""

    @classmethod
    def of_images(cls, count: int, stream: int) -> "Halves":
        """Of images that have nothing to do with each other."""
        return cls(np.arange(count), "images", stream)

    @property
    def count(self) -> int:
        """How many halves there are, where there are any."""
        return DRAWS if len(self.patients) <= MANY_IMAGES else DRAWS_OF_MANY

    @cached_property
    def sets(self) -> list[npt.NDArray[np.int64]]:
        """The images of each half; none where there are too few patients."""
        everyone = np.unique(self.patients)
        if len(everyone) < MIN_PATIENTS:
            return []
        generator = np.random.default_rng((SEED, self.stream))
        halves = (generator.choice(everyone, len(everyone) // 2, replace=False) for _ in range(self.count))
        return [np.flatnonzero(np.isin(self.patients, half)) for half in halves]

    @property
    def words(self) -> str:
        """What a card says of an interval."""
        return f"{LEVEL:.0%}, by {self.count} random halves of {len(np.unique(self.patients)):,} {self.unit}"

    @property
    def to_whole(self) -> float:
        """See intervals.half_width."""
        count = len(np.unique(self.patients))
        return math.sqrt((count // 2) / (count - count // 2))


def over_ranks(count: int, compute: Callable[[int], float]) -> list[float]:
    """`compute` of 0 to count - 1, each rank its share, all on every rank. Every rank must call it."""
    state = PartialState()
    own = [compute(number) for number in range(state.process_index, count, state.num_processes)]
    parts = gather_object([own])
    return [parts[number % len(parts)][number // len(parts)] for number in range(count)]


NO_HALVES = Halves.of_images(0, 0)


def measured(
    key: str, value: float, card: ScoreCard, halves: Halves, draws: Sequence[float] | Array
) -> Measured:
    """The score `key` with its interval, by its values on the halves, if there are any."""
    if not len(draws):
        return Measured(score(key, value, card))
    values = np.asarray(draws, np.float64)
    entry = score(key, value, replace(card, interval=halves.words))
    if entry.value is None or not np.isfinite(values).all():
        return Measured(replace(entry, card=card))
    reach = half_width(values.tolist(), halves.to_whole)
    return Measured(replace(entry, low=entry.value - reach, high=entry.value + reach), values)


def mean_score(key: str, values: Array, card: ScoreCard, halves: Halves) -> Measured:
    """The mean over images of `values` [n]."""
    return measured(key, values.mean(), card, halves, [values[rows].mean() for rows in halves.sets])


def without(keys: Sequence[str], reason: str, card: ScoreCard) -> dict[str, Measured]:
    """The places of scores that cannot be had, and why."""
    return {key: Measured(no_score(reason, card)) for key in keys}

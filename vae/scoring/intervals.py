"""From a score's values on halves of the patients to an interval. Imports no torch."""

import statistics
from collections.abc import Sequence

RANGE = "lowest and highest"
"""How the card of a score begins to tell of its interval, where that is the range of several draws."""

LEVEL, NORMAL_QUANTILE = 0.90, 1.6448536


def half_width(draws: Sequence[float], to_whole: float = 1.0) -> float:
    """Half the length of the interval around a score with these values on halves.

    `to_whole`: by how much halves spread less than the whole would, 1 for an even number of patients.
    """
    return NORMAL_QUANTILE * to_whole * statistics.stdev(draws)

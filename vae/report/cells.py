"""Numbers and names as a cell or a sentence of the report has them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vae.scoring.score_specs import SPEC

MISSING = "-"


def number(value: float | None) -> str:
    """Four digits, or whole thousands; a dash where there is no number."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def fixed(value: float | None, digits: int) -> str:
    """A number with so many decimals; a dash where there is none."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation over seeds."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return number(numbers[0]) if numbers else MISSING
    return f"{number(statistics.mean(numbers))} ± {statistics.stdev(numbers):.2g}"


def in_words(keys: Sequence[str]) -> str:
    """Scores as a sentence has them: `FID of samples and Inception score of samples`."""
    words = [SPEC[key].in_words if key in SPEC else key for key in keys]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))

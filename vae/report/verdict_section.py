"""The report's first words: what the scores say of the variants, how sure that is, what was not measured."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from vae.report.page import MISSING, Block, Heading, Table, Text, number
from vae.report.run_summary import RunSummary
from vae.scoring.intervals import half_width
from vae.scoring.score_specs import SPEC, Better, health_warning

# By what reconstructions are compared in a sentence; the table has all of them.
IN_SENTENCE = ("rfid_2048", "ssim", "psnr")
COMPARED = ("rfid_paper", "rfid_2048", "rfid_kid", "is_reconstructions", "ssim", "psnr", "bce", "bce_excess")
SAMPLED = ("gfid_paper", "gfid_2048", "gfid_kid", "is_samples")
PAIRED = (
    "Both on the same test patients, so what makes one image harder than another drops out. The number after "
    "± is half of a 90 % interval; two runs that differ by less are not told apart."
)
NOT_MEASURED = (
    "whether a diagnosis can still be made: no classifier has looked at the images. Anything clinical."
)


class Difference(NamedTuple):
    """One score of two runs on the same patients."""

    key: str
    first: RunSummary
    second: RunSummary
    value: float
    """Of the first minus that of the second."""
    reach: float | None
    """Half of its 90 % interval; None where it is not known."""

    @property
    def is_sure(self) -> bool:
        return self.reach is not None and abs(self.value) > self.reach

    @property
    def better(self) -> str:
        """The run that is better, if one surely is."""
        if not self.is_sure:
            return ""
        is_first = (self.value > 0) == (SPEC[self.key].better is Better.HIGHER)
        return (self.first if is_first else self.second).name

    def __str__(self) -> str:
        text = f"{'+' if self.value > 0 else ''}{number(self.value)}"
        return text if self.reach is None else f"{text} ± {self.reach:.2g}"


def difference(key: str, first: RunSummary, second: RunSummary) -> Difference | None:
    """How far two runs are apart in a score; None where one has none, or they were scored on other images."""
    a, b = first.value(key), second.value(key)
    if a is None or b is None or not _are_comparable(first, second):
        return None
    draws = [run.draws.draws.get(key, []) for run in (first, second) if run.draws]
    if len(draws) < 2 or not draws[0] or len(draws[0]) != len(draws[1]) or not first.draws:
        return Difference(key, first, second, a - b, None)
    apart = [x - y for x, y in zip(*draws, strict=True)]
    return Difference(key, first, second, a - b, half_width(apart, first.draws.to_whole))


def _are_comparable(first: RunSummary, second: RunSummary) -> bool:
    """Whether the same network scored them on the same images."""
    scores = [run.scores for run in (first, second) if run.scores]
    facts = {(entry.extractor_sha256, entry.data_fingerprint) for entry in scores}
    return len(scores) == 2 and len(facts) == 1


def verdict_section(runs: Sequence[RunSummary]) -> list[Block]:
    """A line for each question."""
    scored = first_of_each_variant(runs)
    if not scored:
        return []
    rows = [
        ["reconstruction", _sentence(_reconstruction(scored))],
        ["generation", _sentence(_generation(scored))],
        ["latents", _sentence(_latents(scored))],
        ["how sure", _how_sure(runs)],
        ["not measured", NOT_MEASURED],
    ]
    return [Heading("In short"), Table(["", ""], [row for row in rows if row[1]])]


def first_of_each_variant(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The scored runs that stand for their variants."""
    found: dict[str, RunSummary] = {}
    for run in runs:
        if run.scores:
            found.setdefault(run.kind, run)
    return list(found.values())


def _sentence(parts: Iterator[str]) -> str:
    return " ".join(f"{part}." for part in parts)


def _reconstruction(runs: Sequence[RunSummary]) -> Iterator[str]:
    """Which of each two variants comes closer to the originals."""
    for first, second in combinations(runs, 2):
        found = [difference(key, first, second) for key in IN_SENTENCE if _says_something(key, first)]
        apart = [entry for entry in found if entry is not None]
        winners = {entry.better for entry in apart} - {""}
        said = ", ".join(f"{SPEC[entry.key].in_words} {entry}" for entry in apart)
        pair = f"{first.name} minus {second.name}: {said}"
        if len(winners) == 1:
            (winner,) = winners
            loser = second.name if winner == first.name else first.name
            yield f"{winner} is closer to the originals than {loser} ({pair})"
        elif apart:
            reason = "the scores disagree" if winners else "not told apart"
            yield f"{first.name} and {second.name}: {reason} ({pair})"


def _says_something(key: str, run: RunSummary) -> bool:
    """Whether a score is of pixels, or of features of a network that has learnt something."""
    is_smoke = run.scores is not None and run.scores.extractor == "smoke"
    return not is_smoke or not key.startswith(("rfid", "gfid", "is_"))


def _generation(runs: Sequence[RunSummary]) -> Iterator[str]:
    """How far from real images each variant's samples are."""
    for run in runs:
        samples, floor = run.score("gfid_2048"), run.score("floor_2048")
        if samples is None or samples.value is None:
            yield f"{run.name} cannot sample" if samples else f"{run.name} has no score of samples"
        elif not _says_something("gfid_2048", run):
            yield f"{run.name}: scores by the smoke network say nothing"
        elif floor and floor.value is not None:
            low, high = samples.low or samples.value, floor.high or floor.value
            place = "above the floor" if low > high else "within the floor"
            beside = f"{number(samples.value)}, real images {number(floor.value)}, at most {number(high)}"
            yield f"samples of {run.name} are {place} (FID-2048 {beside})"


def _latents(runs: Sequence[RunSummary]) -> Iterator[str]:
    """What goes through the bottleneck, and what is wrong with it."""
    for run in runs:
        ratio, rate = run.value("latent_ratio"), run.value("kl")
        if ratio is None or run.scores is None:
            continue
        width = f"1 latent to {1 / ratio:,.0f} pixels" if ratio < 1 else "as many latents as pixels"
        yield f"{run.name}: {width}" + (f", {number(rate)} nats an image" if rate is not None else "")
        if warning := health_warning(run.scores.values):
            yield warning


def _how_sure(runs: Sequence[RunSummary]) -> str:
    """Over what the intervals are, and over what they are not."""
    most = max(Counter(run.kind for run in runs if run.scores).values())
    alone = "one training of each variant, so nothing is known of another"
    trainings = alone if most == 1 else f"up to {most} trainings of a variant"
    scores = [run.score("ssim") for run in runs]
    intervals = dict.fromkeys(score.card.interval for score in scores if score and score.card.interval)
    return f"intervals: {'; '.join(intervals) or 'none'}; {trainings}."


def differences_section(runs: Sequence[RunSummary]) -> list[Block]:
    """A table for each two variants: every score of both, and whether they are told apart."""
    blocks: list[Block] = []
    for first, second in combinations(first_of_each_variant(runs), 2):
        found = [difference(key, first, second) for key in (*COMPARED, *SAMPLED)]
        rows = [
            [
                SPEC[entry.key].head,
                number(first.value(entry.key)),
                number(second.value(entry.key)),
                str(entry),
                entry.better or (MISSING if entry.reach is None else "not told apart"),
            ]
            for entry in found
            if entry is not None
        ]
        if rows:
            head = ["", first.name, second.name, "difference", "better"]
            blocks.append(Table(head, rows, frozenset((1, 2, 3))))
    return [Heading("Variants beside each other"), *blocks, Text(PAIRED)] if blocks else []

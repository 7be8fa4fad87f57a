"""The report's first words: what the scores say of the variants, how sure that is, what was not measured."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from vae.report.page import MISSING, Block, Heading, Table, Text, number
from vae.report.run_summary import RunSummary
from vae.scoring.intervals import half_width
from vae.scoring.score_cards import Score
from vae.scoring.score_specs import SPEC, Better, health_warning

# By what reconstructions are compared in a sentence; the table has all of them.
IN_SENTENCE = ("rfid_2048", "ssim", "psnr")
OF_PIXELS_AND_FEATURES = ("rfid_paper", "rfid_2048", "rfid_kid", "is_reconstructions", "ssim", "psnr", "bce")
COMPARED = ("auc", "decisions_changed", "brier", *OF_PIXELS_AND_FEATURES, "bce_excess")
SAMPLED = ("gfid_paper", "gfid_2048", "gfid_kid", "is_samples")
PAIRED = (
    "Both on the same test patients, so what makes one image harder than another drops out. The number after "
    "± is half of a 90 % interval; two runs that differ by less are not told apart, nor are those on which "
    "the classifiers disagree. In several rows, one in ten tells two like runs apart by chance."
)
NO_DIAGNOSIS = (
    "whether a diagnosis can still be made: no classifier has looked at the images (jobs/classify.py makes "
    "them). "
)
NOT_MEASURED = "what a radiologist would say; anything clinical."


class Difference(NamedTuple):
    """One score of two runs on the same patients."""

    key: str
    first: RunSummary
    second: RunSummary
    value: float
    """Of the first minus that of the second."""
    reach: float | None
    """Half of its 90 % interval; None where it is not known."""
    all_agree: bool = True
    """Whether, of a mean over classifiers, each says the same of which is higher."""

    @property
    def is_sure(self) -> bool:
        return self.reach is not None and abs(self.value) > self.reach and self.all_agree

    @property
    def better(self) -> str:
        """The run that is better, if one surely is."""
        better = SPEC[self.key].better
        if not self.is_sure or better is Better.NEITHER:
            return ""
        is_first = (self.value > 0) == (better is Better.HIGHER)
        return (self.first if is_first else self.second).name

    def __str__(self) -> str:
        text = f"{'+' if self.value > 0 else ''}{number(self.value)}"
        return text if self.reach is None else f"{text} ± {self.reach:.2g}"


def difference(key: str, first: RunSummary, second: RunSummary) -> Difference | None:
    """How far two runs are apart in a score; None where one has none, or they were scored on other images or
    by other networks."""
    a, b = first.score(key), second.score(key)
    if not (a and b) or a.value is None or b.value is None or not _are_comparable(first, second, a, b):
        return None
    value = a.value - b.value
    if not (first.draws and second.draws):
        return Difference(key, first, second, value, None)
    pairs = list(zip(first.draws.of_each.get(key, []), second.draws.of_each.get(key, []), strict=False))
    all_agree = all((x > y) == (value > 0) for x, y in pairs)
    draws = first.draws.draws.get(key, []), second.draws.draws.get(key, [])
    if len(draws[0]) != len(draws[1]) or len(draws[0]) < 2:
        return Difference(key, first, second, value, None)
    apart = [x - y for x, y in zip(*draws, strict=True)]
    return Difference(key, first, second, value, half_width(apart, first.draws.to_whole), all_agree)


def _are_comparable(first: RunSummary, second: RunSummary, a: Score, b: Score) -> bool:
    """Whether the same network scored them on the same images."""
    scores = [run.scores for run in (first, second) if run.scores]
    facts = {(entry.extractor_sha256, entry.data_fingerprint) for entry in scores}
    return len(scores) == 2 and len(facts) == 1 and a.card.extractor_sha256 == b.card.extractor_sha256


def verdict_section(runs: Sequence[RunSummary]) -> list[Block]:
    """A line for each question."""
    scored = first_of_each_variant(runs)
    if not scored:
        return []
    has_diagnosis = any(run.value("auc") is not None for run in scored)
    rows = [
        ["reconstruction", _sentence(_reconstruction(scored))],
        ["generation", _sentence(_generation(scored))],
        ["diagnosis", _sentence(_diagnosis(scored))],
        ["latents", _sentence(_latents(scored))],
        ["how sure", _how_sure(runs)],
        ["not measured", ("" if has_diagnosis else NO_DIAGNOSIS) + NOT_MEASURED],
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
        if not apart:
            continue
        winners = {entry.better for entry in apart}
        said = ", ".join(f"{SPEC[entry.key].in_words} {entry}" for entry in apart)
        pair = f"{first.name} minus {second.name}: {said}"
        if len(winners) == 1 and (winner := winners.pop()):
            loser = second.name if winner == first.name else first.name
            yield f"{winner} is closer to the originals than {loser} ({pair})"
        elif winners - {""} and len(winners - {""}) > 1:
            yield f"{first.name} and {second.name}: the scores disagree ({pair})"
        else:
            sure = [f"{entry.better} in {SPEC[entry.key].in_words}" for entry in apart if entry.better]
            closer = f"closer is {' and '.join(sure)} alone" if sure else "not told apart"
            yield f"{first.name} and {second.name}: {closer} ({pair})"


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
            yield f"samples of {run.name}: {_place(samples, floor)}"


def _place(samples: Score, floor: Score) -> str:
    """Where a distance of samples stands beside that of real images."""
    numbers = f"FID-2048 {number(samples.value)}, real images {number(floor.value)}"
    if samples.card.n_real != floor.card.n_real:
        counts = f"{samples.card.n_real} and {floor.card.n_real}"
        return f"{numbers}, but of other numbers of images ({counts}), which cannot be compared"
    if samples.low is None or floor.high is None:
        return f"{numbers}; how sure that is, is not known"
    place = "above the floor" if samples.low > floor.high else "within the floor"
    return f"{place} ({numbers}, at most {number(floor.high)})"


def _diagnosis(runs: Sequence[RunSummary]) -> Iterator[str]:
    """How much of the label each variant's reconstructions keep, and which keeps more."""
    for run in runs:
        loss, real = run.score("auc_drop"), run.value("auc_real")
        if loss and loss.value is not None and real is not None:
            reach = "" if loss.high is None else f" ± {loss.high - loss.value:.2g}"
            yield f"{run.name} loses {number(loss.value)}{reach} of the AUC of {number(real)} on real images"
    for first, second in combinations(runs, 2):
        apart = difference("auc", first, second)
        if apart is not None:
            pair = f"AUC of {first.name} minus {second.name}: {apart}"
            yield f"{apart.better or 'neither surely'} keeps more ({pair})"


def _latents(runs: Sequence[RunSummary]) -> Iterator[str]:
    """What goes through the bottleneck, and what is wrong with it."""
    for run in runs:
        ratio, rate = run.value("latent_ratio"), run.value("kl")
        if ratio is None or run.scores is None:
            continue
        width = f"1 latent to {1 / ratio:,.0f} pixels" if ratio < 1 else f"{ratio:,.4g} latents to a pixel"
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

"""The scores in the report: a table for each question, and why some scores are not there."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from vae.report.page import MISSING, Block, Heading, Table, Text, labelled_table, number
from vae.report.published_study import (
    HOW_TO_READ,
    HOW_TO_READ_ALONE,
    HOW_TO_READ_SMOKE,
    PUBLISHED,
    differences_table,
)
from vae.report.run_summary import RunSummary
from vae.scoring.intervals import RANGE
from vae.scoring.score_cards import Score
from vae.scoring.score_specs import SPEC, SPECS, ScoreSpec, Section, health_warning

INTERVALS = (
    "The number after ± is half of a 90 % interval: how far the score would move with other test patients, "
    "and of samples with other samples. It says nothing of another training; only several seeds do. "
    "Distances between real images have the lowest and the highest of several draws."
)
RECONSTRUCTION = (
    "SSIM and PSNR compare pixel by pixel, before rounding to 8 bit. FID-2048 and KID compare the sets; KID "
    "is about 0 for sets that are alike."
)
SAMPLED = (
    "The same from latents drawn from q(z|x), as the published study's own code reconstructs; above, from "
    "their mean."
)
GENERATION = (
    "Samples from the prior beside the test images. Real images: as many training images beside the test "
    "images, and beside other training images; what test and training images differ in is between the two."
)
HEALTH = (
    "KL is the rate: what an image's latents say beyond the prior. A latent is active if its mean varies "
    "over images by more than 0.01. The gap is that of all test images' latents together from the prior, "
    "which samples come from. The least possible cross-entropy is that of the grey values themselves."
)


def scores_section(runs: Sequence[RunSummary]) -> list[Block]:
    """FID and Inception score and how to read them, then a table for each other question, and reasons.

    The published figures stand beside scores that can be compared with them, and beside no others.
    """
    scored = [run for run in runs if run.scores]
    is_comparable = bool(scored) and not any(run.label for run in scored)
    beside = " beside the published figures" if is_comparable else ""
    counts = {run.num_scored_images for run in runs} - {0}
    return [
        Heading(f"FID-1000 and Inception score{beside}"),
        *(Text(f"Scores of {count:,} test images, or as many samples.") for count in sorted(counts)),
        section_table(runs, Section.PAPER, PUBLISHED if is_comparable else {}),
        Text(INTERVALS),
        *(Text(paragraph) for paragraph in _how_to_read(scored, is_comparable)),
        differences_table(),
        Heading("What reconstructions lose"),
        section_table(runs, Section.RECONSTRUCTION),
        Text(RECONSTRUCTION),
        *_if_any(runs, Section.SAMPLED, SAMPLED),
        Heading("How like real images samples are"),
        section_table(runs, Section.GENERATION),
        Text(GENERATION),
        Heading("What the latents are"),
        *_health_warnings(scored),
        section_table(runs, Section.HEALTH),
        Text(HEALTH),
        *_reasons(runs),
    ]


def _how_to_read(scored: Sequence[RunSummary], is_comparable: bool) -> Sequence[str]:
    """The paragraphs under the table of FID-1000 and Inception score."""
    if any(run.scores.extractor == "smoke" for run in scored if run.scores):
        return HOW_TO_READ_SMOKE
    if is_comparable:
        return HOW_TO_READ
    return HOW_TO_READ_ALONE if scored else HOW_TO_READ[:2]


def _if_any(runs: Sequence[RunSummary], section: Section, text: str) -> list[Block]:
    """The table of scores that are not always asked for."""
    keys = [spec.key for spec in SPECS if spec.section is section]
    has_any = any(run.value(key) is not None for run in runs for key in keys)
    return [section_table(runs, section), Text(text)] if has_any else []


def _health_warnings(runs: Sequence[RunSummary]) -> list[Text]:
    """What is wrong with the latents of some runs."""
    warnings = {run.name: health_warning(run.scores.values) for run in runs if run.scores}
    return [Text(f"{name}: {words}.", is_warning=True) for name, words in warnings.items() if words]


OF_CLASSIFIERS = {spec.key for spec in SPECS if spec.section is Section.DIAGNOSIS}
OF_CLASSIFIERS |= {spec.baseline for spec in SPECS if spec.key in OF_CLASSIFIERS}


def _reasons(runs: Sequence[RunSummary]) -> list[Text]:
    """A sentence for each reason why some scores of a run have no value."""
    sentences = []
    for run in runs:
        scores = run.scores.scores if run.scores else {}
        # of those from sampled latents it is the same
        keys = [key for key in scores if "_sampled" not in key and key not in OF_CLASSIFIERS]
        missing = {key: scores[key].reason for key in keys if scores[key].value is None}
        sentences += [Text(f"No {words} for {run.name}: {reason}.") for reason, words in by_text(missing)]
    return sentences


def by_text(text_of: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each text once, with the scores in words that it is said of."""
    texts = dict.fromkeys(text_of.values())
    return [(text, in_words([key for key in text_of if text_of[key] == text])) for text in texts]


def in_words(keys: Sequence[str]) -> str:
    """Scores as a sentence has them: `FID of samples and Inception score of samples`."""
    words = [SPEC[key].in_words if key in SPEC else key for key in keys]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


# What stands in the rows of real images: the key of the score of real images that a column has.
BASELINES: dict[str, Callable[[str], str]] = {
    "real images": lambda key: key,
    "training images beside others": lambda key: f"floor_train_{key[6:]}" if key.startswith("floor_") else "",
}


# The label tells of the network behind FID and IS.
UNLABELLED = (Section.HEALTH, Section.DIAGNOSIS)


def section_table(
    runs: Sequence[RunSummary], section: Section, published: Mapping[str, Mapping[str, str]] | None = None
) -> Table:
    """One row per run, then means over seeds, real images and the published figures, by title and key."""
    specs = [spec for spec in SPECS if spec.section is section]
    rows = [[run.name, *(cell(run.score(spec.key)) for spec in specs), run.label] for run in runs]
    rows += _mean_rows(runs, specs)
    rows += _baseline_rows(runs, specs)
    for title, values in (published or {}).items():
        rows.append([title, *(values.get(spec.key, MISSING) for spec in specs), ""])
    if section in UNLABELLED:
        rows = [[*row[:-1], ""] for row in rows]
    return labelled_table(["", *(spec.head for spec in specs), "label"], rows)


def _baseline_rows(runs: Sequence[RunSummary], specs: Sequence[ScoreSpec]) -> list[list[str]]:
    """What real images score: the same for all runs that one network scored on the same images."""
    groups: dict[tuple[str, str], list[RunSummary]] = {}
    for run in runs:
        if run.scores:
            facts = run.scores.extractor_sha256, run.scores.data_fingerprint
            groups.setdefault(facts, []).append(run)
    rows = []
    for group in groups.values():
        of = f", of {group[0].study or group[0].name}" if len(groups) > 1 else ""
        for title, key_of in BASELINES.items():
            keys = [key_of(spec.baseline) for spec in specs]
            # scores of one run may be fewer than those of another
            found = [_first_value(group, key) for key in keys]
            if any(found):
                rows.append([title + of, *map(cell, found), group[0].label])
    return rows


def _first_value(runs: Sequence[RunSummary], key: str) -> Score | None:
    """The score of the first run that has it."""
    scores = [run.score(key) for run in runs]
    return next((score for score in scores if score and score.value is not None), None)


def cell(score: Score | None) -> str:
    """A number with what is known of its uncertainty: ± half of its interval, or the ends of a range."""
    if score is None or score.value is None or score.low is None or score.high is None:
        return number(score.value if score else None)
    if score.card.interval.startswith(RANGE):
        return f"{number(score.value)} ({number(score.low)} to {number(score.high)})"
    return f"{number(score.value)} ± {score.high - score.value:.2g}"


def _mean_rows(runs: Sequence[RunSummary], specs: Sequence[ScoreSpec]) -> list[list[str]]:
    """Means over the seeds of each variant that has several scored runs."""
    rows = []
    for kind in dict.fromkeys(run.kind for run in runs):
        seeds = [run for run in runs if run.kind == kind and run.scores]
        if len(seeds) > 1:
            title = f"{kind}, mean ± standard deviation of {len(seeds)} seeds"
            cells = [spread([run.value(spec.key) for run in seeds]) for spec in specs]
            labels = dict.fromkeys(run.label for run in seeds if run.label)
            rows.append([title, *cells, ", ".join(labels)])
    return rows


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation over seeds."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return number(numbers[0] if numbers else None)
    return f"{number(statistics.mean(numbers))} ± {statistics.stdev(numbers):.2g}"

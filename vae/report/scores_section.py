"""The report's tables of scores: each run, means over seeds, real images, the published figures."""

from __future__ import annotations

from vae.report.cells import MISSING, in_words, number, spread
from vae.report.page import Block, Heading, Table, Text
from vae.report.run_summary import RunSummary
from vae.scoring.score_specs import SPECS, ScoreSpec, Section

# FID and IS as the published study gives them, for its two iterations.
PUBLISHED = {
    "published, first iteration (linear)": {"rfid_paper": "0.447", "is_reconstructions": "2.479"},
    "published, second iteration (direct)": {"rfid_paper": "0.133", "is_reconstructions": "3.014"},
}
# Under the table of FID and IS, a paragraph each.
HOW_TO_READ = (
    "Lower FID is better; 0 is a perfect copy. For reconstructions it measures what is lost on the way "
    "through the latents, so more latents win, and direct has no bottleneck at all. For samples, the row of "
    "real images is what as many training images score: what a perfect sampler could reach.",
    "The Inception score counts ImageNet classes, which X-rays do not show. Only its distance to the score "
    "of the real images says anything.",
    "The rows of the published study can be compared with care. Its code was pytorch-ignite's FID and "
    "Inception score on 1000 class probabilities, and this table repeats that protocol; such a FID is at "
    "most about 2 and not on the scale of a FID on 2048 activations. But the published study does not say "
    "whether it scored reconstructions or samples, which images, or how many. Its second iteration cannot "
    "sample, so its figures stand under reconstructions. They come from one training of each model.",
)
HOW_TO_READ_SMOKE = (
    "These scores come from a tiny network with seeded random weights. They show that the scoring works, and "
    "nothing about the models: compare them with no other number.",
)


def scores_section(runs: list[RunSummary], is_smoke: bool) -> list[Block]:
    """FID and Inception score and how to read them, the other scores, and why some are not there."""
    beside = "" if is_smoke else " beside the published figures"
    counts = {run.scores.scores["rfid_paper"].card.n_fake or 0 for run in runs if run.scores}
    paragraphs = HOW_TO_READ_SMOKE if is_smoke else HOW_TO_READ
    return [
        Heading(f"FID and Inception score{beside}"),
        *(Text(f"Scores of {count:,} test images, or as many samples.") for count in sorted(counts)),
        section_table(runs, Section.PAPER, with_published=not is_smoke),
        *(Text(paragraph) for paragraph in paragraphs),
        Heading("Other scores"),
        section_table(runs, Section.OTHER),
        *_reasons(runs),
    ]


def _reasons(runs: list[RunSummary]) -> list[Text]:
    """A sentence for each reason why some scores of a run have no value."""
    keys_of: dict[str, list[str]] = {}
    for run in runs:
        for key, score in run.scores.scores.items() if run.scores else ():
            if score.value is None:
                keys_of.setdefault(f"{run.name}: {score.reason}", []).append(key)
    return [Text(f"No {in_words(keys)} for {reason}.") for reason, keys in keys_of.items()]


def section_table(runs: list[RunSummary], section: Section, with_published: bool = False) -> Table:
    """One row per run, then means over seeds, real images and, if asked for, the published figures."""
    specs = [spec for spec in SPECS if spec.section is section]
    rows = [[run.name, *(number(run.value(spec.key)) for spec in specs), run.label] for run in runs]
    rows += _mean_rows(runs, specs)
    rows += _baseline_rows(runs, specs)
    if with_published:
        for title, values in PUBLISHED.items():
            rows.append([title, *(values.get(spec.key, MISSING) for spec in specs), ""])
    # the last column is for labels, if there are any
    head = ["", *(spec.head for spec in specs), "label"]
    width = len(head) if any(row[-1] for row in rows) else len(head) - 1
    return Table(head[:width], [row[:width] for row in rows], frozenset(range(1, len(specs) + 1)))


def _mean_rows(runs: list[RunSummary], specs: list[ScoreSpec]) -> list[list[str]]:
    """Means over the seeds of each variant that has several scored runs."""
    rows = []
    for variant in dict.fromkeys(run.variant for run in runs):
        seeds = [run for run in runs if run.variant == variant and run.scores]
        if len(seeds) > 1:
            title = f"{variant}, mean ± standard deviation of {len(seeds)} seeds"
            cells = [spread([run.value(spec.key) for run in seeds]) for spec in specs]
            labels = dict.fromkeys(run.label for run in seeds if run.label)
            rows.append([title, *cells, ", ".join(labels)])
    return rows


def _baseline_rows(runs: list[RunSummary], specs: list[ScoreSpec]) -> list[list[str]]:
    """The scores of real images: the same for all runs, unless different extractors scored them."""
    first_of = {run.scores.extractor_sha256: run for run in reversed(runs) if run.scores}
    return [
        ["real images", *(number(run.value(spec.baseline)) for spec in specs), run.label]
        for run in first_of.values()
    ]

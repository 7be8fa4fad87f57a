"""The scores in the report: the tables, the card of every number, and scores.csv."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence

from vae.report.page import MISSING, Block, Details, Heading, Table, Text, csv_cell, labelled_table, number
from vae.report.run_summary import RunSummary
from vae.scoring.inception_weights import SMOKE_LABEL
from vae.scoring.score_cards import RunScores
from vae.scoring.score_specs import SPEC, SPECS, ScoreSpec, Section

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
HOW_TO_READ_ALONE = (
    *HOW_TO_READ[:2],
    "The label says why these scores cannot be compared with those of others. So the figures of the "
    "published study are not shown beside them.",
)
HOW_TO_READ_SMOKE = (
    "These scores come from a tiny network with seeded random weights. They show that the scoring works, and "
    "nothing about the models: compare them with no other number.",
)
# What differs between the cards of a run's scores; the rest of them stands above the table.
CARD_COLUMNS = ("images", "n_real", "n_fake", "n", "layer", "computed_by")
CSV_COLUMNS = (
    *("study", "run", "variant", "seed", "score", "value", "unit", "reason"),
    *("n_real", "n_fake", "n", "split", "images", "layer", "computed_by"),
    *("extractor", "extractor_sha256", "label", "checkpoint_sha256", "data_fingerprint"),
)


def scores_section(runs: Sequence[RunSummary], is_smoke: bool) -> list[Block]:
    """FID and Inception score and how to read them, the other scores, and why some are not there.

    The published figures stand beside scores that can be compared with them, and beside no others.
    """
    is_comparable = not is_smoke and not any(run.label for run in runs)
    is_smoke = is_smoke or any(SMOKE_LABEL in run.label for run in runs)
    beside = " beside the published figures" if is_comparable else ""
    counts = {run.num_scored_images for run in runs} - {0}
    not_comparable = HOW_TO_READ_SMOKE if is_smoke else HOW_TO_READ_ALONE
    return [
        Heading(f"FID and Inception score{beside}"),
        *(Text(f"Scores of {count:,} test images, or as many samples.") for count in sorted(counts)),
        section_table(runs, Section.PAPER, PUBLISHED if is_comparable else {}),
        *(Text(paragraph) for paragraph in (HOW_TO_READ if is_comparable else not_comparable)),
        Heading("Other scores"),
        section_table(runs, Section.OTHER),
        *_reasons(runs),
    ]


def _reasons(runs: Sequence[RunSummary]) -> list[Text]:
    """A sentence for each reason why some scores of a run have no value."""
    sentences = []
    for run in runs:
        scores = run.scores.scores if run.scores else {}
        missing = {key: score.reason for key, score in scores.items() if score.value is None}
        sentences += [Text(f"No {words} for {run.name}: {reason}.") for reason, words in _by_text(missing)]
    return sentences


def _by_text(text_of: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each text once, with the scores in words that it is said of."""
    texts = dict.fromkeys(text_of.values())
    return [(text, in_words([key for key in text_of if text_of[key] == text])) for text in texts]


def in_words(keys: Sequence[str]) -> str:
    """Scores as a sentence has them: `FID of samples and Inception score of samples`."""
    words = [SPEC[key].in_words if key in SPEC else key for key in keys]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def section_table(
    runs: Sequence[RunSummary], section: Section, published: Mapping[str, Mapping[str, str]] | None = None
) -> Table:
    """One row per run, then means over seeds, real images and the published figures, by title and key."""
    specs = [spec for spec in SPECS if spec.section is section]
    rows = [[run.name, *(number(run.value(spec.key)) for spec in specs), run.label] for run in runs]
    rows += _mean_rows(runs, specs)
    # real images score the same for all runs, unless different extractors scored them
    first_of = {run.scores.extractor_sha256: run for run in reversed(runs) if run.scores}
    for run in first_of.values():
        rows.append(["real images", *(number(run.value(spec.baseline)) for spec in specs), run.label])
    for title, values in (published or {}).items():
        rows.append([title, *(values.get(spec.key, MISSING) for spec in specs), ""])
    return labelled_table(["", *(spec.head for spec in specs), "label"], rows)


def _mean_rows(runs: Sequence[RunSummary], specs: Sequence[ScoreSpec]) -> list[list[str]]:
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


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation over seeds."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < 2:
        return number(numbers[0] if numbers else None)
    return f"{number(statistics.mean(numbers))} ± {statistics.stdev(numbers):.2g}"


def cards_section(runs: Sequence[RunSummary]) -> list[Block]:
    """The cards of every scored run, to open."""
    scored = [(run.name, run.scores) for run in runs if run.scores]
    title = "how each number was made"
    cards: list[Block] = [Details(f"{name}: {title}", _card_blocks(scores)) for name, scores in scored]
    return [Heading("Score cards"), *(cards or [Text("No run is scored yet.")])]


def _card_blocks(run_scores: RunScores) -> list[Block]:
    """What the cards of a run's scores have in common, a row for each score, and their notes."""
    scores = run_scores.scores.items()
    cards = {key: score.card.facts() for key, score in scores if score.value is not None}
    shared = {"scored on": f"{run_scores.world_size} x {run_scores.device}"}
    for facts in cards.values():
        shared |= {name: facts[name] for name in facts if name not in (*CARD_COLUMNS, "note", "exact_value")}
    rows = [[key, *(facts.get(name, "") for name in CARD_COLUMNS)] for key, facts in cards.items()]
    notes = _by_text({key: facts["note"] for key, facts in cards.items() if "note" in facts})
    return [
        Table(["fact", "value"], [[name.replace("_", " "), fact] for name, fact in shared.items()]),
        Table(["score", *(name.replace("_", " ") for name in CARD_COLUMNS)], rows, frozenset((2, 3, 4))),
        *(Text(f"{words}: {note}.") for note, words in notes),
    ]


def scores_csv(study: str, runs: Sequence[RunSummary]) -> str:
    """Every score, one a line, with its card; a run without scores has one line with the reason."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()

    def write(cells: Mapping[str, object]) -> None:
        writer.writerow({name: csv_cell(cell) for name, cell in cells.items()})

    for run in runs:
        seed = run.config.seed if run.config else ""
        cells = {"study": study, "run": run.name, "variant": run.variant, "seed": seed}
        if not run.scores:
            write({**cells, "reason": f"{run.state}: {run.reason}"})
            continue
        for key, score in run.scores.scores.items():
            number_cells = {"score": key, "value": score.value, "unit": score.unit, "reason": score.reason}
            write({**cells, **number_cells, **score.card.facts()})
    return text.getvalue()

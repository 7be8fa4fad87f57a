"""How each number was made: the cards in the report, and scores.csv with all of them."""

import csv
import io
from collections.abc import Mapping, Sequence

from vae.report.page import Block, Details, Heading, Table, Text, csv_cell
from vae.report.run_summary import RunSummary
from vae.report.scores_section import by_text
from vae.scoring.score_cards import RunScores, ScoreCard

CSV_COLUMNS = (
    *("study", "run", "variant", "seed", "score", "value", "low", "high", "unit", "reason"),
    *ScoreCard.__struct_fields__,
)
# Of columns that are numbers.
NUMBERS = frozenset(("n_real", "n_fake", "n_train", "n", "noise_seed", "exact_value"))


def cards_section(runs: Sequence[RunSummary]) -> list[Block]:
    """The cards of every scored run, to open."""
    scored = [(run.name, run.scores) for run in runs if run.scores]
    title = "how each number was made"
    cards: list[Block] = [Details(f"{name}: {title}", _card_blocks(scores)) for name, scores in scored]
    return [Heading("Score cards"), *(cards or [Text("No run is scored yet.")])]


def _card_blocks(run_scores: RunScores) -> list[Block]:
    """The facts that all of a run's scores share, a row for each score with the rest, and their notes."""
    cards = {key: score.card.facts() for key, score in run_scores.scores.items() if score.value is not None}
    notes = by_text({key: facts.pop("note") for key, facts in cards.items() if "note" in facts})
    names = [name for name in ScoreCard.__struct_fields__ if any(name in facts for facts in cards.values())]
    shared = [name for name in names if len({facts.get(name) for facts in cards.values()}) == 1]
    own = [name for name in names if name not in shared]
    facts = next(iter(cards.values()), {})
    common = [["scored on", f"{run_scores.world_size} x {run_scores.device}"]]
    common += [[in_words(name), facts[name]] for name in shared]
    rows = [[key, *(facts.get(name, "") for name in own)] for key, facts in cards.items()]
    right = frozenset(number for number, name in enumerate(own, start=1) if name in NUMBERS)
    return [
        Table(["fact", "value"], common),
        Table(["score", *map(in_words, own)], rows, right),
        *(Text(f"{words}: {note}.") for note, words in notes),
    ]


def in_words(name: str) -> str:
    """A fact's name as a column has it."""
    return name.replace("_", " ")


def scores_csv(study: str, runs: Sequence[RunSummary]) -> str:
    """Every score, one a line, with its card; a run without scores has one line with the reason."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()

    def write(cells: Mapping[str, object]) -> None:
        writer.writerow({name: csv_cell(cell) for name, cell in cells.items()})

    for run in runs:
        seed = run.config.seed if run.config else ""
        cells = {"study": run.study or study, "run": run.folder.name, "variant": run.variant, "seed": seed}
        if not run.scores:
            write({**cells, "reason": f"{run.state}: {run.reason}"})
            continue
        for key, score in run.scores.scores.items():
            number_cells = {name: getattr(score, name) for name in ("value", "low", "high", "unit", "reason")}
            write({**cells, "score": key, **number_cells, **score.card.facts()})
    return text.getvalue()

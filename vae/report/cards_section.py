"""The report's score cards: how each number of each run was made."""

from __future__ import annotations

from vae.report.cells import in_words
from vae.report.page import Block, Details, Heading, Table, Text
from vae.report.run_summary import RunSummary
from vae.scoring.score_cards import RunScores

# What differs between the scores of a run; the rest of their cards stands above the table.
COLUMNS = ("images", "n_real", "n_fake", "n", "layer", "computed_by")


def cards_section(runs: list[RunSummary]) -> list[Block]:
    """The cards of every scored run, to open."""
    blocks: list[Block] = []
    for run in runs:
        if run.scores:
            blocks.append(Details(f"{run.name}: how each number was made", _card_blocks(run.scores)))
    return [Heading("Score cards"), *(blocks or [Text("No run is scored yet.")])]


def _card_blocks(run_scores: RunScores) -> list[Block]:
    """What the cards of a run's scores have in common, a row for each score, and their notes."""
    shared = {"scored on": f"{run_scores.world_size} x {run_scores.device}"}
    rows: list[list[str]] = []
    keys_of: dict[str, list[str]] = {}
    for key, score in run_scores.scores.items():
        if score.value is None:
            continue
        facts = score.card.facts()
        shared |= {
            name: fact for name, fact in facts.items() if name not in (*COLUMNS, "note", "exact_value")
        }
        rows.append([key, *(facts.get(name, "") for name in COLUMNS)])
        keys_of.setdefault(score.card.note, []).append(key)
    notes = [f"{in_words(keys)}: {note}." for note, keys in keys_of.items() if note]
    return [
        Table(["fact", "value"], [[name.replace("_", " "), fact] for name, fact in shared.items()]),
        Table(["score", *(name.replace("_", " ") for name in COLUMNS)], rows, frozenset((2, 3, 4))),
        *(Text(note) for note in notes),
    ]

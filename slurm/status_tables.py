"""The state of a study as a table: plain words and numbers with their units."""

from __future__ import annotations

from collections.abc import Iterable

from slurm.state import RunState
from vae.goodput import duration
from vae.report.page import Table, to_text
from vae.scoring.score_specs import SPECS

STATES = (
    *("run", "state", "step", "epoch", "loss\nnats/image"),
    *("images/s", "left", "restarts", "useful", "note"),
)


def states_table(states: Iterable[RunState]) -> str:
    """One row per run: what it is doing and how far it is."""
    rows = [
        [
            state.name,
            state.state,
            f"{state.step:,} of {state.total_steps:,}" if state.total_steps else "",
            f"{state.epoch:.1f}" if state.total_steps else "",
            number(state.loss, ",.1f"),
            number(state.images_per_s, ",.0f"),
            duration(state.eta_s) if state.state == "training" else "",
            str(state.restarts),
            number(state.goodput, ".0%"),
            " ".join(state.detail.split()),
        ]
        for state in states
    ]
    return to_text(Table(STATES, rows, frozenset(range(2, 9))))


def scores_table(states: Iterable[RunState]) -> str:
    """One row per run with scores; a dash where a variant has none (`direct` cannot sample)."""
    specs = [spec for spec in SPECS if spec.is_in_status]
    rows = []
    for state in states:
        if state.scores:
            values = [number(state.scores.get(spec.key), ".4g") or "-" for spec in specs]
            rows.append([state.name, *values, state.label])
    # the last column is for labels, if there are any
    head = ["run", *(spec.short_head for spec in specs), "note"]
    width = len(head) if any(row[-1] for row in rows) else len(head) - 1
    return to_text(Table(head[:width], [row[:width] for row in rows], frozenset(range(1, 1 + len(specs)))))


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)

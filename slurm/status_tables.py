"""The state of a study as a table: plain words and numbers with their units."""

from __future__ import annotations

from collections.abc import Iterable

from slurm.state import RunStatus
from vae.goodput import duration
from vae.report.page import MISSING, Table, labelled_table, to_text
from vae.scoring.score_specs import SPECS
from vae.study import RunState

STATES = (
    *("run", "state", "step", "epoch", "loss\nnats/image"),
    *("images/s", "left", "restarts", "useful", "note"),
)


def states_table(runs: Iterable[RunStatus]) -> str:
    """One row per run: what it is doing and how far it is."""
    rows = []
    for run in runs:
        progress, has_begun = run.progress, bool(run.progress.total_steps)
        cells = [
            run.name,
            str(run.state),
            f"{progress.step:,} of {progress.total_steps:,}" if has_begun else "",
            f"{progress.epoch:.1f}" if has_begun else "",
            number(progress.loss, ",.1f"),
            number(progress.images_per_s, ",.0f"),
            duration(progress.eta_s) if run.state is RunState.TRAINING else "",
            str(run.restarts),
            number(run.goodput, ".0%"),
            " ".join(run.detail.split()),
        ]
        rows.append(cells)
    return to_text(Table(STATES, rows, frozenset(range(2, 9))))


def scores_table(runs: Iterable[RunStatus]) -> str:
    """One row per run with scores; a dash where a variant has none (`direct` cannot sample)."""
    specs = [spec for spec in SPECS if spec.is_in_status]
    rows = []
    for run in runs:
        if run.scores:
            values = [number(run.scores.get(spec.key), ".4g") or MISSING for spec in specs]
            rows.append([run.name, *values, run.label])
    return to_text(labelled_table(["run", *(spec.short_head for spec in specs), "note"], rows))


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)

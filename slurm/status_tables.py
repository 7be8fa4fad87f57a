"""The state of a study as a table: plain words and numbers with their units."""

from __future__ import annotations

from collections.abc import Iterable

from slurm.state import RunState
from vae.goodput import duration
from vae.report.page import Table, to_text

# The figures to compare runs by; scores.json and the report hold the rest.
SCORES = {
    "rfid_paper": "FID\nreconstr.",
    "gfid_paper": "FID\nsamples",
    "is_reconstructions": "IS\nreconstr.",
    "is_samples": "IS\nsamples",
    "rfid_2048": "FID-2048\nreconstr.",
    "gfid_2048": "FID-2048\nsamples",
    "ssim": "SSIM",
    "psnr": "PSNR\ndB",
}
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
    scored = [state for state in states if state.scores]
    head = ["run", *SCORES.values(), *(["note"] if any(state.label for state in scored) else [])]
    values = [[number(state.scores.get(name), ".4g") or "-" for name in SCORES] for state in scored]
    rows = [[state.name, *row, state.label] for state, row in zip(scored, values, strict=True)]
    return to_text(Table(head, [row[: len(head)] for row in rows], frozenset(range(1, 1 + len(SCORES)))))


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)

"""The state of a study as a table: plain words and numbers with their units."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from slurm.state import RunState
from vae.goodput import duration

# The figures to compare runs by; scores.json and the report hold the rest.
HEADINGS = {
    "rfid_paper": "rFID\npaper",
    "gfid_paper": "gFID\npaper",
    "is_reconstructions": "IS\nreconstr.",
    "is_samples": "IS\nsamples",
    "rfid_2048": "rFID\n2048",
    "gfid_2048": "gFID\n2048",
    "ssim": "SSIM\n",
    "psnr": "PSNR\ndB",
}

# A pipe has no width of its own; nothing may be cut off there.
PIPE_WIDTH = 240


def console() -> Console:
    """Standard output; no colours, which would carry no meaning."""
    return Console(no_color=True, highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def states_table(states: Iterable[RunState]) -> Table:
    """One row per run: what it is doing and how far it is."""
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in ("step", "epoch", "loss\nnats/image", "images/s", "left", "restarts", "useful"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note")
    for state in states:
        table.add_row(
            state.name,
            state.state,
            f"{state.step:,} of {state.total_steps:,}" if state.total_steps else "",
            f"{state.epoch:.1f}" if state.total_steps else "",
            number(state.loss, ",.1f"),
            number(state.images_per_s, ",.0f"),
            duration(state.eta_s) if state.state == "training" else "",
            str(state.restarts),
            number(state.goodput, ".0%"),
            state.detail,
        )
    return table


def scores_table(states: Iterable[RunState]) -> Table:
    """One row per run with scores; a dash where a variant has none (`direct` cannot sample)."""
    scored = [state for state in states if state.scores]
    is_labelled = any(state.label for state in scored)
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    if is_labelled:
        table.add_column("note", no_wrap=True)
    for state in scored:
        values = [number(state.scores.get(name), ".4g") or "-" for name in HEADINGS]
        table.add_row(state.name, *values, *([state.label] if is_labelled else []))
    return table


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)

"""The state of a study as a table: plain words and numbers with their units."""

from __future__ import annotations

from collections.abc import Iterable

from slurm.state import RunStatus
from vae.goodput import duration
from vae.report.page import Table, to_text
from vae.study import RunState

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


def states_table(runs: Iterable[RunStatus]) -> str:
    """One row per run: what it is doing and how far it is."""
    return to_text(Table(STATES, [states_row(run) for run in runs], frozenset(range(2, 9))))


def states_row(run: RunStatus) -> list[str]:
    """The cells of one run."""
    progress, has_begun = run.progress, bool(run.progress.total_steps)
    return [
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


def scores_table(runs: Iterable[RunStatus]) -> str:
    """One row per run with scores; a dash where a variant has none (`direct` cannot sample)."""
    scored = [run for run in runs if run.scores]
    head = ["run", *SCORES.values(), *(["note"] if any(run.label for run in scored) else [])]
    values = [[number(run.scores.get(name), ".4g") or "-" for name in SCORES] for run in scored]
    rows = [[run.name, *row, run.label] for run, row in zip(scored, values, strict=True)]
    return to_text(Table(head, [row[: len(head)] for row in rows], frozenset(range(1, 1 + len(SCORES)))))


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)

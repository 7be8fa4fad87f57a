"""What the files of one run say; never fails for what is missing or damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import DamagedFile, ToolkitError
from vae.config import RunConfig
from vae.metrics import read_metrics
from vae.report.cells import MISSING
from vae.scoring.score_cards import RunScores, read_scores
from vae.study import DONE_FILE, PROVENANCE_FILE, read_json, read_run


@dataclass(frozen=True)
class RunSummary:
    """What is known of one run."""

    folder: Path
    config: RunConfig | None
    state: str
    reason: str
    """Why it is not scored; empty if it is."""
    metrics: list[dict[str, Any]]
    provenance: dict[str, Any]
    scores: RunScores | None
    """None unless they belong to the finished weights."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def variant(self) -> str:
        return self.config.variant if self.config else MISSING

    @property
    def label(self) -> str:
        """What its scores must carry with them, as in `smoke, not comparable`."""
        return self.scores.label if self.scores else ""

    def value(self, key: str) -> float | None:
        """A score, or None where there is none."""
        return self.scores.value(key) if self.scores else None


def read_summary(folder: Path) -> RunSummary:
    """Whatever can be read of the run in `folder`."""
    config, metrics, scores = None, [], None
    problem = score_problem = ""
    try:
        config = read_run(folder)
        metrics = read_metrics(folder)
    except (ToolkitError, ValueError) as error:
        problem = str(error)
    try:
        scores = read_scores(folder)
    except DamagedFile as error:
        score_problem = f" ({error})"
    done = read_json(folder / DONE_FILE)
    if not folder.exists():
        state, reason = "missing", "it was never started"
    elif config is None or (problem and done is None):
        state, reason = "damaged", problem
    elif done is None:
        state, reason = "not finished", _progress(metrics)
    elif scores is None:
        state, reason = "not scored", f"to score it: python jobs/evaluate.py {folder}{score_problem}"
    elif scores.checkpoint_sha256 != done.get("weights_sha256"):
        state, reason = "not scored", "its scores belong to other weights; score it again"
    else:
        state, reason = "scored", ""
    provenance = read_json(folder / PROVENANCE_FILE) or {}
    return RunSummary(folder, config, state, reason, metrics, provenance, None if reason else scores)


def _progress(metrics: list[dict[str, Any]]) -> str:
    starts = [line for line in metrics if line["kind"] == "start"]
    if not starts:
        return "training has not begun"
    return f"training is at step {metrics[-1]['step']:,} of {starts[-1]['total_steps']:,}"

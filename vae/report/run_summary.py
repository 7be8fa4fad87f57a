"""What the files of one run say; a damaged one takes nothing else down with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data_prep.errors import ToolkitError
from vae.config import RunConfig
from vae.digests import LAUNCH_AGAIN, Losses, find_changes, find_losses
from vae.events import AnyEvent, read_events
from vae.metrics import MetricsLine, Progress, StartLine, progress_of, read_metrics
from vae.provenance import Provenance, read_provenance
from vae.report.page import MISSING
from vae.run_dir import DONE_FILE, SCORES_FILE, Done, read_done
from vae.run_state import RunState
from vae.scoring.score_cards import Draws, RunScores, Score, read_draws, read_scores
from vae.study import read_run

T = TypeVar("T")

CHANGED_LABEL = "changed after it was scored"


@dataclass(frozen=True)
class RunSummary:
    """What is known of one run."""

    folder: Path
    config: RunConfig | None
    metrics: Sequence[MetricsLine]
    events: Sequence[AnyEvent]
    done: Done | None
    scores: RunScores | None
    """None unless they belong to the finished weights."""
    draws: Draws | None
    """None unless they belong to the scores."""
    provenance: Provenance
    progress: Progress
    state: RunState
    reason: str
    """Why it is not done; empty if it is."""
    is_lost: bool
    """Whether its final weights are gone."""
    changes: Sequence[str]
    """What has become of files of its result since they were written, and what to do about it."""
    study: str = ""
    """Named where runs of several studies stand beside each other."""

    @property
    def name(self) -> str:
        """Its name on the page."""
        return f"{self.study}/{self.folder.name}" if self.study else self.folder.name

    @property
    def kind(self) -> str:
        """What it shares with runs that differ from it in the seed alone."""
        return f"{self.study}/{self.variant}" if self.study else self.variant

    @property
    def variant(self) -> str:
        return self.config.variant if self.config else MISSING

    @property
    def label(self) -> str:
        """What its scores must carry with them, as in `smoke, not comparable`."""
        if self.scores is None:
            return ""
        is_changed = any(change.startswith((DONE_FILE, SCORES_FILE)) for change in self.changes)
        return ", ".join(filter(None, (self.scores.label, CHANGED_LABEL if is_changed else "")))

    @property
    def num_scored_images(self) -> int:
        """Test images behind its FID; 0 if there are none."""
        score = self.scores.scores.get("rfid_paper") if self.scores else None
        return (score.card.n_fake or 0) if score else 0

    def score(self, key: str) -> Score | None:
        """A score with its card, or None where there is none."""
        return self.scores.scores.get(key) if self.scores else None

    def value(self, key: str) -> float | None:
        """A score, or None where there is none."""
        return self.scores.value(key) if self.scores else None


def read_summary(folder: Path) -> RunSummary:
    """Whatever can be read of the run in `folder`."""
    problems: list[str] = []

    def intact(read: Callable[[Path], T]) -> T | None:
        try:
            return read(folder)
        except ToolkitError as error:
            problems.append(f"{error}; {error.hint}" if error.hint else f"{error}")
            return None

    config, done, scores = intact(read_run), intact(read_done), intact(read_scores)
    metrics, events = intact(read_metrics) or [], intact(read_events) or []
    provenance = intact(read_provenance) or Provenance()
    progress = progress_of(next((line for line in metrics if isinstance(line, StartLine)), None), metrics)
    losses = intact(lambda folder: find_losses(folder, done)) or Losses()
    changes = intact(find_changes) or []
    state, reason = _state(folder, progress, done, scores)
    if losses.weights:
        state, reason = RunState.DAMAGED, f"{losses.weights}; {LAUNCH_AGAIN}"
    elif changes and state is RunState.DONE:
        state, reason = RunState.DAMAGED, changes[0]
    if problems and folder.exists():
        state, reason = RunState.DAMAGED, problems[0]
    is_shown = config and done and scores and scores.checkpoint_sha256 == done.weights_sha256
    own_scores = scores if is_shown else None
    draws = intact(read_draws)
    own_draws = draws if draws and own_scores and draws.is_of(own_scores) else None
    facts = (config, metrics, events, done, own_scores, own_draws, provenance, progress, state, reason)
    return RunSummary(folder, *facts, is_lost=bool(losses.weights), changes=changes)


def _state(
    folder: Path, progress: Progress, done: Done | None, scores: RunScores | None
) -> tuple[RunState, str]:
    """The state of a run as far as whole files tell it, and why it is not done."""
    if not folder.exists():
        return RunState.MISSING, "it was never started"
    if done is None and not progress.total_steps:
        return RunState.MISSING, "training has not begun"
    if done is None:
        return RunState.STOPPED, f"training is at step {progress.step:,} of {progress.total_steps:,}"
    if scores is None:
        return RunState.TRAINED, f"to score it: python jobs/evaluate.py {folder}"
    if scores.checkpoint_sha256 != done.weights_sha256:
        return RunState.TRAINED, "its scores belong to other weights; score it again"
    return RunState.DONE, ""

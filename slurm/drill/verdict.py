"""What interruptions cost a run, and whether it still ended like an unbroken one: read from its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from slurm.drill.faults import Hit
from vae.metrics import StepLine, read_metrics
from vae.provenance import read_attempts
from vae.study import is_scored, is_trained, read_run, read_study

# Beside the interval itself: a slow step, and the save that was due.
SLACK_S = 3.0
# Losses of runs on several ranks or on a GPU, in double precision: only the order of sums differs.
TOLERANCE = 1e-9

LOG_LINE = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \S+: (begins at step|step|stopped at step) (\d+) of \d+"
)


@dataclass(frozen=True)
class Stretch:
    """What one attempt trained without a break."""

    began: float
    """Unix seconds."""
    from_step: int
    steps: tuple[tuple[int, float], ...]
    """The steps it wrote down, and when (Unix seconds)."""

    @property
    def last_step(self) -> int:
        """The last step that is known to have been trained."""
        return self.steps[-1][0] if self.steps else self.from_step


def read_stretches(run_dir: Path) -> list[Stretch]:
    """The stretches of a run, oldest first, from the logs of its first rank.

    metrics.jsonl does not tell: it reads like that of an unbroken run.
    """
    found: list[Stretch] = []
    for path in (run_dir / "logs").glob("train-*-rank0.log"):
        for line in path.read_text(errors="replace").splitlines():
            if not (told := LOG_LINE.match(line)):
                continue
            moment = datetime.strptime(told[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()
            if told[2].startswith("begins"):
                found.append(Stretch(moment, int(told[3]), ()))
            elif found:
                last = found[-1]
                found[-1] = Stretch(last.began, last.from_step, (*last.steps, (int(told[3]), moment)))
    return sorted(found, key=lambda stretch: stretch.began)


@dataclass(frozen=True)
class Break:
    """The end of one stretch and the beginning of the next."""

    hits: tuple[Hit, ...]
    """What was done to the run in between; nothing if its scheduler ended it."""
    stopped_at: int
    resumed_at: int
    resumed: float
    """Unix seconds."""
    lost_s: float
    """Time of the steps that were redone."""

    @property
    def lost_steps(self) -> int:
        """Steps that had to be redone, as far as they were written down."""
        return max(0, self.stopped_at - self.resumed_at)

    @property
    def was_signalled(self) -> bool:
        """Whether all that happened let the run save first; one that is starting has nothing to save."""
        deciding = [hit for hit in self.hits if hit.when != "starting"] or self.hits
        return all(hit.is_warning for hit in deciding)


def breaks(stretches: Sequence[Stretch], hits: Sequence[Hit]) -> list[Break]:
    """What lies between the stretches of a run."""
    found = []
    for before, after in pairwise(stretches):
        between = tuple(hit for hit in hits if before.began <= hit.time < after.began)
        redone = [moment for step, moment in before.steps if step > after.from_step]
        lost_s = redone[-1] - redone[0] if redone else 0.0
        found.append(Break(between, before.last_step, after.from_step, after.began, lost_s))
    return found


def judge_breaks(run: str, found: Sequence[Break], interval_s: float) -> list[str]:
    """What was lost against the promise: nothing after a warning, else at most the checkpoint interval."""
    problems = []
    for one in found:
        what = " and ".join(f"{hit.what} while {hit.when}" for hit in one.hits) or "stopped by its scheduler"
        redone = f"{run}: {what} at step {one.stopped_at}: {one.lost_steps} steps redone"
        if one.was_signalled and one.lost_steps:
            problems.append(f"{redone} in spite of a warning")
        elif one.lost_s > interval_s + SLACK_S:
            problems.append(f"{redone}, {one.lost_s:.1f} s; allowed: {interval_s:.1f} s")
    return problems


def describe(hit: Hit, found: Sequence[Break]) -> str:
    """One line on an interruption: what, at which step, and how the run went on."""
    line = f"{hit.what} while {hit.when}, at step {hit.step}"
    one = next((one for one in found if hit in one.hits), None)
    if one is None:
        return f"{line}: no restart was needed"
    redone = f"{one.lost_steps} steps redone" if one.lost_steps else "nothing lost"
    return f"{line}: resumed at step {one.resumed_at} after {one.resumed - hit.time:.0f} s, {redone}"


def judge_end(run_dir: Path, unbroken: Path) -> list[str]:
    """Where a run does not end like the unbroken one; on one CPU rank it must do so bit for bit."""
    steps, expected = (
        {line.step: line.loss for line in read_metrics(path) if isinstance(line, StepLine)}
        for path in (run_dir, unbroken)
    )
    if steps.keys() != expected.keys():
        return [f"{run_dir.name}: {len(steps)} logged steps, the unbroken run has {len(expected)}"]
    problems, is_exact = [], must_be_exact(run_dir) and must_be_exact(unbroken)
    worst = max((abs(steps[step] - expected[step]) / abs(expected[step]) for step in expected), default=0.0)
    if worst > (0.0 if is_exact else TOLERANCE):
        problems.append(f"{run_dir.name}: losses differ by {worst:.3g} of their value")
    if is_exact and not have_same_weights(run_dir, unbroken):
        problems.append(f"{run_dir.name}: the weights differ")
    return problems


def must_be_exact(run_dir: Path) -> bool:
    """Whether every attempt ran on one CPU rank, where nothing changes the order of sums."""
    return all(attempt.world_size == 1 and attempt.device == "cpu" for attempt in read_attempts(run_dir))


def have_same_weights(run_dir: Path, other: Path) -> bool:
    """Whether two finished runs have the same weights, bit for bit."""
    import torch  # seconds, and only needed here

    from vae.training.checkpoint import load_trained

    left, right = (load_trained(path)[0].state_dict() for path in (run_dir, other))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def judge_study(study_dir: Path) -> list[str]:
    """What is missing in a study that should be done, and what should not be there any more."""
    study = read_study(study_dir)
    problems = []
    for run in study.runs:
        if not is_trained(study_dir / run):
            problems.append(f"{run} is not trained")
        elif not is_scored(study_dir / run, study):
            problems.append(f"{run} is not scored")
    stray = [path for name in ("*.part", ".rendezvous*", "*.save_tmp") for path in study_dir.rglob(name)]
    return problems + [f"{path.relative_to(study_dir)} is left behind" for path in sorted(stray)]


def interval_s(run_dir: Path) -> float:
    """Seconds between the saves of a run."""
    return 60 * read_run(run_dir).checkpoint_every_min

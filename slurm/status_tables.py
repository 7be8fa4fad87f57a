"""The states of studies and runs as tables: plain words and numbers with their units."""

import shlex
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from slurm.study_state import RunStatus
from vae.digests import Verdict
from vae.goodput import duration
from vae.report.page import MISSING, Table, labelled_table, to_text
from vae.run_dir import DONE_FILE, LAUNCHES_FILE, METRICS_FILE, REPORT_FILE, SCORES_FILE, STUDY_FILE
from vae.run_state import RunState
from vae.scoring.score_specs import SPECS, health_warning
from vae.study import read_launches

STATES = (
    *("run", "state", "step", "epoch", "loss\nnats/image"),
    *("images/s", "left", "restarts", "useful", "note"),
)


def studies_table(studies: dict[Path, list[RunStatus]]) -> str:
    """One row per study: how many runs are done, what the others are doing, and when anything changed."""
    rows = []
    for folder, runs in studies.items():
        counts = Counter(run.state for run in runs)
        others = [f"{count} {state}" for state, count in counts.items() if state is not RunState.DONE]
        changed = datetime.fromtimestamp(last_change(folder, runs))
        done = f"{counts[RunState.DONE]} of {len(runs)}"
        rows.append([folder.name, done, ", ".join(others), f"{changed:%Y-%m-%d %H:%M}"])
    return to_text(Table(["study", "done", "runs", "newest change"], rows, frozenset([1])))


def last_change(study_dir: Path, runs: Iterable[RunStatus]) -> float:
    """When the study or one of its runs got any further, in Unix seconds."""
    paths = [study_dir, study_dir / STUDY_FILE, study_dir / LAUNCHES_FILE]
    for run in runs:
        paths += [study_dir / run.name / name for name in (METRICS_FILE, DONE_FILE, SCORES_FILE)]
    return max(path.stat().st_mtime for path in paths if path.exists())


def study_page(study_dir: Path, runs: list[RunStatus]) -> str:
    """The tables of one study, the newest launch, and where the report is."""
    parts = [states_table(runs)]
    if any(run.scores for run in runs):
        parts.append(scores_table(runs))
    if launches := read_launches(study_dir):
        parts.append(f"launched {launches[-1].time}: {shlex.join(launches[-1].command)}")
    if (report := study_dir / REPORT_FILE).exists():
        parts.append(f"report: {report}")
    return "\n\n".join(parts)


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
            warning = health_warning(run.scores).partition(",")[0]
            rows.append([run.name, *values, "; ".join(filter(None, (run.label, warning)))])
    return to_text(labelled_table(["run", *(spec.short_head for spec in specs), "note"], rows))


def verdicts_table(verdicts: Iterable[Verdict]) -> str:
    """A row for each run, and one more for each further file of it that is lost or changed."""
    rows = []
    for verdict in verdicts:
        whole = ["whole"] if verdict.num_files and verdict.is_whole else []
        says = [*whole, *([verdict.note] if verdict.note else []), *verdict.problems]
        rows += [[verdict.run, f"{verdict.num_files}", says[0]], *(["", "", line] for line in says[1:])]
    return to_text(Table(["run", "files", "what became of them"], rows, frozenset([1])))


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)

"""Show what every run of a study is doing, from its files, squeue and sacct; without a study, list them all.

done       trained and scored            training   on a node now
trained    waits for its scores          queued     waits for SLURM; the note says why
scoring    being scored now              stopped    ended before it was complete; launch again to go on
failed     SLURM says how in the note    cancelled  by someone
missing    never started                 unknown    SLURM does not answer

useful: share of the allocated time spent in training steps whose results survived; the report tells the rest
"""

from __future__ import annotations

import logging
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path

import _front
from rich.console import Console
from rich.live import Live
from rich.text import Text

from data_prep.errors import SettingsError, ToolkitError
from slurm.job_records import read_records
from slurm.scheduler import Look, SchedulerWatch, ask_scheduler
from slurm.state import RunStatus, all_states, study_states
from slurm.status_tables import scores_table, states_table
from vae.report.page import Table, to_text
from vae.run_dir import DONE_FILE, LAUNCHES_FILE, METRICS_FILE, REPORT_FILE, SCORES_FILE, STUDY_FILE
from vae.study import RunState, Study, find_studies, find_target, read_launches, read_study

EXAMPLES = """\
  python jobs/status.py                         # the studies in runs/
  python jobs/status.py chest                   # the study runs/chest
  python jobs/status.py /shared/runs/chest/linear-s0
  python jobs/status.py chest --watch           # again every 10 seconds, until all is done; Ctrl-C ends it
  python jobs/status.py chest --watch 60
"""


log = logging.getLogger(__name__)

# Files may be looked at so often; squeue is asked as seldom as everywhere.
LEAST_WATCH_S = 2.0


def main() -> int:
    """Print the table of runs, and of scores if there are any; once, or until all is done."""
    parser = _front.Parser(__doc__, EXAMPLES)
    parser.add_target(nargs="?")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=10.0,
        metavar="SECONDS",
        help="show it again every 10 (or SECONDS) seconds, until every run is done",
    )
    flags = parser.parse_args()
    if flags.what is None:
        if flags.watch is not None:
            raise SettingsError("--watch needs a study", "python jobs/status.py STUDY --watch")
        print(studies_table(flags.runs_dir))
        return 0
    study_dir, run = find_target(flags.what, flags.runs_dir)
    if flags.watch is None:
        print(picture(study_dir, run))
        return 0
    if not flags.watch >= LEAST_WATCH_S:
        raise SettingsError(f"--watch {flags.watch:g}; allowed: at least {LEAST_WATCH_S:g} seconds")
    with suppress(KeyboardInterrupt):  # how one leaves it
        watch(study_dir, run, flags.watch)
    return 0


def states_of(study_dir: Path, run: str, look: Look) -> list[RunStatus]:
    """What every run, or that one, is doing now; runs that were added meanwhile are there, too."""
    states = study_states(study_dir, read_study(study_dir), look)
    return [state for state in states if run in ("", state.name)]


def studies_table(runs_dir: Path) -> str:
    """One row per study: how many runs are done, what the others are doing, and when anything changed.

    Raises:
        SettingsError: there are none.
    """
    folders = find_studies(runs_dir)
    if not folders:
        raise SettingsError(
            f"no study in {runs_dir}", "a study is a folder of runs, made by `jobs/launch.py`"
        )
    rows = []
    for folder, states in all_states(dict(readable(folders))).items():
        counts = Counter(str(state.state) for state in states)
        others = ", ".join(f"{count} {state}" for state, count in counts.items() if state != "done")
        changed = datetime.fromtimestamp(last_change(folder, states))
        rows.append([folder.name, f"{counts['done']} of {len(states)}", others, f"{changed:%Y-%m-%d %H:%M}"])
    return to_text(Table(["study", "done", "runs", "newest change"], rows, frozenset([1])))


def readable(folders: list[Path]) -> Iterator[tuple[Path, Study]]:
    """Those of the studies whose files are whole; of the others it warns."""
    for folder in folders:
        try:
            study = read_study(folder)
            read_records(folder)
        except ToolkitError as error:
            log.warning("warning: %s", error)
        else:
            yield folder, study


def last_change(study_dir: Path, states: list[RunStatus]) -> float:
    """When the study or one of its runs got any further, as a Unix time."""
    runs = [
        study_dir / state.name / name for state in states for name in (METRICS_FILE, DONE_FILE, SCORES_FILE)
    ]
    paths = [study_dir, study_dir / STUDY_FILE, study_dir / LAUNCHES_FILE, *runs]
    return max(path.stat().st_mtime for path in paths if path.exists())


def picture(study_dir: Path, states: list[RunStatus]) -> str:
    """The tables, and where the report is."""
    parts = [states_table(states)]
    if any(state.scores for state in states):
        parts.append(scores_table(states))
    if launches := read_launches(study_dir):
        launch = launches[-1]
        parts.append(f"launched {launch.time}: {shlex.join(launch.command)}")
    if (report := study_dir / REPORT_FILE).exists():
        parts.append(f"report: {report}")
    return "\n\n".join(parts)


def watch(study_dir: Path, run: str, every_s: float) -> None:
    """Show the tables again and again until every run is done: in place on a terminal, else one by one."""
    out = Console(no_color=True)
    with Live(console=out, auto_refresh=False) if out.is_terminal else nullcontext() as live:
        while True:
            states = states_of(study_dir, run)
            shown = f"{picture(study_dir, states)}\n\n{datetime.now():%Y-%m-%d %H:%M:%S}"
            if live is None:
                print(f"{shown}\n", flush=True)
            else:
                live.update(Text(shown), refresh=True)  # a narrow terminal folds: labels stay whole
            if all(state.state is RunState.DONE for state in states):
                return
            time.sleep(every_s)


if __name__ == "__main__":
    _front.run(main)

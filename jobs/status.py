"""Show what every run of a study is doing, from its files, squeue and sacct.

done       trained and scored            training   on a node now
trained    waits for its scores          queued     waits for SLURM; the note says why
scoring    being scored now              stopped    ended before it was complete; launch again to go on
failed     SLURM says how in the note    cancelled  by someone
missing    never started                 unknown    SLURM does not answer
"""

from __future__ import annotations

import shlex
import time
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path

import _front
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from data_prep.errors import SettingsError
from slurm.state import REPORT_FILE, RunState, find_study, study_states
from slurm.tables import console, scores_table, states_table
from vae.study import read_launches, read_study

EXAMPLES = """\
  python jobs/status.py chest                   # the study runs/chest
  python jobs/status.py /shared/runs/chest
  python jobs/status.py chest --watch           # again every 10 seconds, until all is done; Ctrl-C ends it
  python jobs/status.py chest --watch 60
"""


# SLURM asks its users not to ask it more often.
LEAST_WATCH_S = 2.0


def main() -> int:
    """Print the table of runs, and of scores if there are any; once, or until all is done."""
    parser = _front.Parser(__doc__, EXAMPLES)
    parser.add_argument("study", help="name of a study, or its folder")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=10.0,
        metavar="SECONDS",
        help="show it again every 10 (or SECONDS) seconds, until every run is done",
    )
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where studies are kept (default: runs)"
    )
    asked = parser.parse_args()
    study_dir = find_study(asked.study, asked.runs_dir)
    if asked.watch is None:
        console().print(picture(study_dir, states_of(study_dir)))
        return 0
    if not asked.watch >= LEAST_WATCH_S:
        raise SettingsError(f"--watch {asked.watch:g}; allowed: at least {LEAST_WATCH_S:g} seconds")
    with suppress(KeyboardInterrupt):  # how one leaves it
        watch(study_dir, asked.watch)
    return 0


def states_of(study_dir: Path) -> list[RunState]:
    """What every run is doing now; runs that were added to the study meanwhile are there, too."""
    return study_states(study_dir, read_study(study_dir))


def picture(study_dir: Path, states: list[RunState]) -> Group:
    """The tables, and where the report is."""
    parts: list[Table | Text] = [states_table(states)]
    if any(state.scores for state in states):
        parts += [Text(), scores_table(states)]
    if launches := read_launches(study_dir):
        launch = launches[-1]
        parts += [Text(f"\nlaunched {launch['time']}: {shlex.join(launch['command'])}", overflow="fold")]
    if (report := study_dir / REPORT_FILE).exists():
        parts += [Text(f"\nreport: {report}", overflow="ignore", no_wrap=True)]
    return Group(*parts)


def watch(study_dir: Path, every_s: float) -> None:
    """Show the tables again and again until every run is done: in place on a terminal, else one by one."""
    out = console()
    with Live(console=out, auto_refresh=False) if out.is_terminal else nullcontext() as live:
        while True:
            states = states_of(study_dir)
            shown = Group(picture(study_dir, states), Text(f"\n{datetime.now():%Y-%m-%d %H:%M:%S}"))
            if live is None:
                out.print(shown, Text())
            else:
                live.update(shown, refresh=True)
            if all(state.state == "done" for state in states):
                return
            time.sleep(every_s)


if __name__ == "__main__":
    _front.run(main)

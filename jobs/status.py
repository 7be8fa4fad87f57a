"""Show what every run of a study is doing, from its files, squeue and sacct; without a study, list them all.

done       trained and scored            training   on a node now
trained    waits for its scores          queued     waits for SLURM; the note says why
scoring    being scored now              stopped    ended before it was complete; launch again to go on
failed     SLURM says how in the note    cancelled  by someone
missing    never started                 unknown    SLURM does not answer
damaged    a file of it is not what was written, or its weights are lost; the note says what to do

useful: share of the allocated time spent in training steps whose results survived; the report tells the rest

examples:
  python jobs/status.py                         # the studies in runs/
  python jobs/status.py chest                   # the study runs/chest
  python jobs/status.py /shared/runs/chest/linear-s0
  python jobs/status.py chest --watch           # again every 10 seconds, until all is done; Ctrl-C ends it
  python jobs/status.py chest --watch 60
  python jobs/status.py chest --verify          # read every byte of its results again
"""

import time
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path

import _front

from data_prep.errors import SettingsError
from data_prep.plain_text import for_terminal
from slurm.job_records import read_studies
from slurm.job_states import Look, SchedulerWatch, ask_scheduler
from slurm.status_tables import studies_table, study_page, verdicts_table
from slurm.study_state import RunStatus, all_states, study_states
from vae.digests import verify
from vae.run_state import RunState
from vae.study import find_target, read_study

# Files may be looked at so often; squeue is asked as seldom as everywhere.
LEAST_WATCH_S = 2.0


def main() -> int:
    parser = _front.Parser(__doc__).add_target(nargs="?")
    text = "compare every byte of what the runs' results consist of with its digest;\n"
    text += "exit code 1 if anything is lost or changed"
    parser.add_argument("--verify", action="store_true", help=text)
    text = "show it again every 10 (or SECONDS) seconds, until every run is done"
    parser.add_argument("--watch", nargs="?", type=float, const=10.0, metavar="SECONDS", help=text)
    flags = parser.parse_args()
    if flags.what is None:
        if flags.watch is not None:
            raise SettingsError("--watch needs a study", "python jobs/status.py STUDY --watch")
        if flags.verify:
            raise SettingsError("--verify needs a study", "python jobs/status.py STUDY --verify")
        print(list_studies(flags.runs_dir))
        return 0
    study_dir, run = find_target(flags.what, flags.runs_dir)
    if flags.verify and flags.watch is not None:
        raise SettingsError("--verify and --watch do not go together", "leave one out")
    if flags.verify:
        verdicts = [verify(study_dir / name) for name in ([run] if run else read_study(study_dir).runs)]
        print(verdicts_table(verdicts))
        return 0 if all(verdict.is_whole for verdict in verdicts) else 1
    if flags.watch is None:
        print(study_page(study_dir, states_of(study_dir, run, ask_scheduler)))
    elif flags.watch >= LEAST_WATCH_S:
        with suppress(KeyboardInterrupt):  # how one leaves it
            watch(study_dir, run, flags.watch)
    else:
        raise SettingsError(f"--watch {flags.watch:g}; allowed: at least {LEAST_WATCH_S:g} seconds")
    return 0


def states_of(study_dir: Path, run: str, look: Look) -> list[RunStatus]:
    """What every run, or that one, is doing now; runs that were added meanwhile are there, too."""
    states = study_states(study_dir, read_study(study_dir), look)
    return [state for state in states if run in ("", state.name)]


def list_studies(runs_dir: Path) -> str:
    """One row per study; of those whose files are damaged it warns."""
    return studies_table(all_states(read_studies(runs_dir)))


def watch(study_dir: Path, run: str, every_s: float) -> None:
    """Show the tables again and again until every run is done: in place on a terminal, else one by one."""
    from rich.console import Console  # a twentieth of a second, which one look can do without
    from rich.live import Live
    from rich.text import Text

    out, scheduler = Console(no_color=True), SchedulerWatch()
    with Live(console=out, auto_refresh=False) if out.is_terminal else nullcontext() as live:
        while True:
            states = states_of(study_dir, run, scheduler.look)
            page = f"{study_page(study_dir, states)}\n\n{datetime.now():%Y-%m-%d %H:%M:%S}"
            if live is None:
                print(f"{page}\n", flush=True)
            else:
                text = Text(for_terminal(page))  # a narrow terminal folds: labels stay whole
                live.update(text, refresh=True)
            if all(state.state is RunState.DONE for state in states):
                return
            time.sleep(every_s)


if __name__ == "__main__":
    _front.run(main)

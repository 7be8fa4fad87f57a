"""Print the newest log of a run, or follow it from one attempt to the next.

Each start of a job is an attempt with a log of its own for each rank. A job that ended before it could open
one is shown by what SLURM caught of it.

examples:
  python jobs/logs.py chest/linear-s0               # the newest attempt, rank 0
  python jobs/logs.py chest/linear-s0 --follow      # go on until the run is done; Ctrl-C ends it
  python jobs/logs.py chest/linear-s0 --list        # all attempts, numbered
  python jobs/logs.py chest/linear-s0 --attempt 1 --rank 3 --lines 50
"""

import sys
from datetime import datetime

import _front

from data_prep.errors import RunError, SettingsError
from slurm.diagnose.explain import explain
from slurm.diagnose.follow import follow_log
from slurm.diagnose.gather_case import gather
from slurm.diagnose.log_files import AttemptLogs, find_attempts, last_change
from slurm.job_records import read_jobs
from vae.study import find_target, read_study


def build_parser() -> _front.Parser:
    parser = _front.Parser(__doc__).add_target("STUDY/RUN")
    add = parser.add_argument
    add("--follow", action="store_true", help="go on with what is added, also by later attempts")
    add("--list", action="store_true", help="list the attempts instead")
    add("--attempt", type=int, metavar="N", help="attempt number N of the list, from 1 (default: the newest)")
    add("--rank", type=int, default=0, metavar="K", help="process K of the attempt")
    add("--lines", type=int, metavar="N", help="only the last N lines")
    return parser


def main() -> None:
    flags = build_parser().parse_args()

    # what is asked for, and whether it can be
    study_dir, run = find_target(flags.what, flags.runs_dir)
    study = read_study(study_dir)
    if not run:
        hint = f"give one of its runs: {flags.what}/{next(iter(study.runs), 'RUN')}"
        raise SettingsError(f"{flags.what} is a study, not a run", hint)
    if flags.lines is not None and flags.lines < 1:
        raise SettingsError(f"--lines {flags.lines}; allowed: at least 1")
    if flags.follow and (flags.list or flags.attempt is not None or flags.lines is not None):
        hint = "leave out --list, --attempt and --lines"
        raise SettingsError("--follow shows the newest attempt from its beginning", hint)

    # show it
    if flags.follow:
        try:
            follow_log(study_dir, study, run, flags.rank)
        except KeyboardInterrupt:  # how one leaves it
            print()
        return
    attempts = find_attempts(study_dir / run, study.runs.index(run), read_jobs(study_dir, study))
    if not attempts:
        raise RunError(f"{run} has no log yet", explain(gather(study_dir, study, (run,))[0]))
    if not flags.list:
        show(attempts, flags.attempt, flags.rank, flags.lines)
        return
    for number, attempt in enumerate(attempts, 1):
        time = datetime.fromtimestamp(last_change(attempt))
        ranks = ", ".join(map(str, attempt.logs))
        print(f"{number}  {attempt.label}; rank {ranks}; last written {time:%Y-%m-%d %H:%M:%S}")


def show(attempts: list[AttemptLogs], number: int | None, rank: int, lines: int | None) -> None:
    if number is not None and not 1 <= number <= len(attempts):
        raise SettingsError(f"there is no attempt {number}", f"choose from 1 to {len(attempts)}; see --list")
    attempt = attempts[-1 if number is None else number - 1]
    if rank not in attempt.logs:
        ranks = ", ".join(map(str, attempt.logs))
        raise SettingsError(f"{attempt.label} has no log of rank {rank}", f"it has rank {ranks}")
    path = attempt.logs[rank]
    print(f"{attempt.label}: {path}", file=sys.stderr, flush=True)
    text = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    sys.stdout.writelines(text if lines is None else text[-lines:])


if __name__ == "__main__":
    _front.run(main)

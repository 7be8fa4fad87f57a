"""Show what every run of a study is doing, from its files, squeue and sacct.

done       trained and scored            training   on a node now
trained    waits for its scores          queued     waits for SLURM; the note says why
scoring    being scored now              stopped    ended before it was complete; launch again to go on
failed     SLURM says how in the note    cancelled  by someone
missing    never started                 unknown    SLURM does not answer
"""

from __future__ import annotations

from pathlib import Path

import _front

from slurm.state import find_study, study_states
from slurm.tables import console, scores_table, states_table
from vae.study import read_study

EXAMPLES = """\
  python jobs/status.py chest                   # the study runs/chest
  python jobs/status.py /shared/runs/chest
  watch python jobs/status.py chest             # again every two seconds
"""


def main() -> int:
    """Print the table of runs, and of scores if there are any."""
    parser = _front.Parser(__doc__, EXAMPLES)
    parser.add_argument("study", help="name of a study, or its folder")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where studies are kept (default: runs)"
    )
    asked = parser.parse_args()
    study_dir = find_study(asked.study, asked.runs_dir)
    states = study_states(study_dir, read_study(study_dir))
    out = console()
    out.print(states_table(states))
    if any(state.scores for state in states):
        out.print()
        out.print(scores_table(states))
    report = study_dir / "report.html"
    if report.exists():
        out.print(f"\nreport: {report}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    _front.run(main)

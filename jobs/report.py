"""Write the report of a study: report.html (one file that opens offline), report.md and scores.csv.

It always comes: a run that is not finished or not scored appears in it with the reason.
"""

from __future__ import annotations

from pathlib import Path

import _front

from slurm.state import find_study
from vae.report import write_report

EXAMPLES = """\
  python jobs/report.py chest                   # the study runs/chest
  python jobs/report.py /shared/runs/chest
"""


def main() -> int:
    """Write the report and print the path of report.html."""
    parser = _front.Parser(__doc__, EXAMPLES)
    parser.add_argument("study", help="name of a study, or its folder")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where studies are kept (default: runs)"
    )
    args = parser.parse_args()
    print(write_report(find_study(args.study, args.runs_dir)))
    return 0


if __name__ == "__main__":
    _front.run(main)

"""Write the report of a study or of one run: report.html (one file that opens offline), report.md and a CSV.

It always comes: a run that is not finished or not scored appears in it with the reason.

examples:
  python jobs/report.py chest                   # the study runs/chest
  python jobs/report.py chest/linear-s0         # one run, into its folder
  python jobs/report.py /shared/runs/chest
"""

import _front

from vae.report.report import write_report
from vae.study import find_target


def main() -> None:
    flags = _front.Parser(__doc__).add_target().parse_args()
    print(write_report(*find_target(flags.what, flags.runs_dir)))


if __name__ == "__main__":
    _front.run(main)

"""Write the report of a study or of one run: report.html (one file that opens offline), report.md and a CSV.

It always comes: a run that is not finished or not scored appears in it with the reason. Of several studies it
is one report, in which variants of all of them stand beside each other; it lies in RUNS_DIR/A+B.

examples:
  python jobs/report.py chest                   # the study runs/chest
  python jobs/report.py chest/linear-s0         # one run, into its folder
  python jobs/report.py /shared/runs/chest
  python jobs/report.py chest chest-beta4       # two studies, compared, in runs/chest+chest-beta4
"""

import _front

from data_prep.errors import SettingsError
from vae.report.report import write_comparison, write_report
from vae.study import find_study, find_target


def main() -> None:
    parser = _front.Parser(__doc__).add_target(nargs="+")
    flags = parser.parse_args()
    if len(flags.what) == 1:
        print(write_report(*find_target(flags.what[0], flags.runs_dir)))
        return
    studies = [find_study(name, flags.runs_dir) for name in flags.what]
    names = [study.name for study in studies]
    if len({*names}) < len(names):
        raise SettingsError(f"two of the studies have one name: {', '.join(names)}", "name each study once")
    print(write_comparison(studies, flags.runs_dir / "+".join(names)))


if __name__ == "__main__":
    _front.run(main)

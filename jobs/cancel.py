"""Cancel what is queued or running of a study, or of one of its runs.

A training that runs saves first. Nothing in the study's folder is lost: the same launch command goes on from
there. Doing it twice is the same as doing it once.
"""

import _front

from slurm.control import cancel
from vae.study import find_target, read_study

EXAMPLES = """\
  python jobs/cancel.py chest                   # training, scoring and report of the study runs/chest
  python jobs/cancel.py chest/linear-s0         # one run; the others go on
"""


def main() -> int:
    """Cancel, and print what was cancelled."""
    parser = _front.Parser(__doc__, EXAMPLES)
    parser.add_target()
    flags = parser.parse_args()
    study_dir, run = find_target(flags.what, flags.runs_dir)
    lines = cancel(study_dir, read_study(study_dir), run)
    for line in lines or [f"nothing of {flags.what} is queued or running"]:
        print(line)
    return 0


if __name__ == "__main__":
    _front.run(main)

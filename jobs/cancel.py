"""Cancel what is queued or running of a study, or of one of its runs.

A training that runs saves first. Nothing in the study's folder is lost: the same launch command goes on from
there. Doing it twice is the same as doing it once.

Exit code: 0 = all of it is over, 1 = SLURM has the order, but something has not ended within two minutes.

examples:
  python jobs/cancel.py chest                   # training, scoring and report of the study runs/chest
  python jobs/cancel.py chest/linear-s0         # one run; the others go on
"""

import _front

from slurm.cancel_throttle import cancel
from vae.study import find_target, read_study


def main() -> int:
    flags = _front.Parser(__doc__).add_target().parse_args()
    study_dir, run = find_target(flags.what, flags.runs_dir)
    lines = cancel(study_dir, read_study(study_dir), run)
    print("\n".join(lines) or f"nothing of {flags.what} is queued or running")
    return 0 if all(lines.values()) else 1


if __name__ == "__main__":
    _front.run(main)

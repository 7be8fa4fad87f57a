"""Let fewer or more runs of a study train at once, or hold those that wait, and release them.

It takes effect at once on what is queued; what runs goes on. `launch --max-parallel N` sets it beforehand.

examples:
  python jobs/throttle.py chest 2               # at most two runs train at once, and two are scored
  python jobs/throttle.py chest hold            # start no more
  python jobs/throttle.py chest release
"""

import _front

from data_prep.errors import SettingsError
from slurm.cancel_throttle import hold, release, set_throttle
from vae.study import find_study, read_study


def main() -> None:
    parser = _front.Parser(__doc__).add_target("STUDY")
    parser.add_argument("to", metavar="N|hold|release", help="runs at once, from 1; or hold, or release")
    flags = parser.parse_args()
    study_dir = find_study(flags.what, flags.runs_dir)
    study = read_study(study_dir)
    if flags.to == "hold":
        lines = hold(study_dir, study)
    elif flags.to == "release":
        lines = release(study_dir, study)
    elif flags.to.isascii() and flags.to.isdigit() and int(flags.to) > 0:
        lines = set_throttle(study_dir, study, int(flags.to))
    else:
        raise SettingsError(f"{flags.to!r} is not allowed", "give a number from 1, hold or release")
    print("\n".join(lines) or f"nothing of {flags.what} is queued or running")


if __name__ == "__main__":
    _front.run(main)

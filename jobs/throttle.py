"""Let fewer or more runs of a study train at once, or hold those that wait, and release them.

It takes effect at once on what is queued; what runs goes on. `launch --max-parallel N` sets it beforehand.
"""

from __future__ import annotations

import _front

from data_prep.errors import SettingsError
from slurm.control import Asked, throttle
from vae.study import find_study, read_study

EXAMPLES = """\
  python jobs/throttle.py chest 2               # at most two runs train at once, and two are scored
  python jobs/throttle.py chest hold            # start no more
  python jobs/throttle.py chest release
"""


def main() -> int:
    """Change the live arrays of the study, and print which."""
    parser = _front.Parser(__doc__, EXAMPLES)
    parser.add_target("STUDY")
    parser.add_argument("to", metavar="N|hold|release", help="runs at once, from 1; or hold, or release")
    asked = parser.parse_args()
    study_dir = find_study(asked.what, asked.runs_dir)
    lines = throttle(study_dir, read_study(study_dir), read_asked(asked.to))
    for line in lines or [f"nothing of {asked.what} is queued or running"]:
        print(line)
    return 0


def read_asked(text: str) -> Asked:
    """What to do with the arrays.

    Raises:
        SettingsError: it is neither a number from 1 nor hold nor release.
    """
    if text == "hold":
        return "hold"
    if text == "release":
        return "release"
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise SettingsError(f"{text!r} is not allowed", "give a number from 1, hold or release")


if __name__ == "__main__":
    _front.run(main)

"""Check whether this machine and its cluster are ready for a study, and say what to do about what is not.

Looks at this machine and at what SLURM says. With --probe it also submits a short job, on two nodes where
there are two, and checks what only nodes can show: that they share the runs folder and the Python packages,
see their GPUs and CPUs, find each other, can requeue a job and read packed images. Without SLURM it checks
this machine alone. Nothing stays behind, neither a file nor a job.

Exit code: 0 if nothing failed, 1 if a check failed, 2 if the command itself is wrong.

examples:
  python jobs/doctor.py                                  # this machine, and SLURM if it is there
  python jobs/doctor.py --probe                          # the nodes of the default partition, too
  python jobs/doctor.py --write-profile mysite --probe   # a new cluster: draft its profile, and try it
  python jobs/doctor.py --profile mysite --probe --data shards/chest --wait-min 60
"""

import signal
from collections import Counter
from pathlib import Path

import _front

from data_prep.errors import ClusterError, SettingsError
from slurm.client import has_programs
from slurm.doctor.check import Verdict, check_lines
from slurm.doctor.examination import Examination, examine, find_shards
from slurm.doctor.profile_draft import new_profile_path
from slurm.launch_data import SHARDS_DIR
from slurm.profile import read_profile


def build_parser() -> _front.Parser:
    parser = _front.Parser(__doc__)
    add = parser.add_argument
    text = "slurm/profiles/NAME.yaml, or a YAML file (default: SLURM's defaults)"
    add("--profile", default="", metavar="NAME", help=text)
    add("--probe", action="store_true", help="submit a short job that looks at the nodes")
    text = "draft slurm/profiles/NAME.yaml from what SLURM says, and check that; --profile is its base"
    add("--write-profile", default="", metavar="NAME", help=text)
    add("--wait-min", type=int, default=10, metavar="N", help="minutes the probe may wait to start")
    text = f"packed images for the probe to read (default: the first under {SHARDS_DIR}/, if any)"
    add("--data", type=Path, metavar="SHARDS", help=text)
    parser.add_runs_dir()
    return parser


def main() -> int:
    flags = build_parser().parse_args()
    profile = read_profile(flags.profile)
    draft = new_profile_path(flags.write_profile) if flags.write_profile else None
    data = find_shards(flags.data, SHARDS_DIR)
    if flags.wait_min < 1:
        raise SettingsError(f"--wait-min {flags.wait_min}; allowed: at least 1")
    if (flags.probe or draft) and not has_programs():
        raise ClusterError("no SLURM on this machine (no sbatch)", "run this on a login node of your cluster")
    for number in (signal.SIGTERM, signal.SIGHUP):  # which cancel the probe as Ctrl-C does
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)

    wait_min = flags.wait_min if flags.probe else 0
    counts: Counter[Verdict] = Counter()
    exam = Examination(profile, bool(flags.profile), flags.runs_dir, data, wait_min, draft)
    for title, checks in examine(exam):
        print(title, *map(check_lines, checks), "", sep="\n", flush=True)
        counts.update(check.verdict for check in checks)
    if draft and draft.exists():
        print(f"written: {draft}\nto use it: --profile {draft.stem}, here and with jobs/launch.py\n")
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict))
    return 1 if counts[Verdict.FAIL] else 0


if __name__ == "__main__":
    _front.run(main)

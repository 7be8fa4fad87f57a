"""Prove on this very cluster that interruptions change nothing.

A tiny study is launched twice, with the command that real studies use. One of the two is interrupted at
random steps in every way the site allows to an ordinary user: warned as before a time limit, requeued,
terminated, cancelled and launched again, killed without a warning; while it starts, trains, saves, ends and
is scored. What was cancelled must not come back by itself. Then the two must be the same: bit for bit on one
CPU rank, else with losses that differ by at most 1e-9 of their value in double precision. A warning may cost
no step, a kill only those since the last checkpoint.

Nothing is needed but sbatch, squeue, scancel and scontrol. Many clusters hold a requeued job for two minutes,
so this takes a while. Exit code 0: all held; 1: something did not; 2: a mistake in the command. Ctrl-C stops
the jobs; the same command then goes on. When it is over, the folders may be deleted.

examples:
  python jobs/drill.py --profile mysite                        # ten interruptions on your cluster
  python jobs/drill.py --profile mysite --gpus 2 --nodes 2     # of runs on two nodes
  python jobs/drill.py --cluster local --count 4               # with processes of this machine
  python jobs/drill.py --profile mysite --seed 1               # once more, in another order
"""

import signal
import sys
from pathlib import Path

import _front

from data_prep.errors import SettingsError
from slurm.backends import choose_backend
from slurm.client import require_slurm
from slurm.drill.drill import begin_drill, stop_drill
from slurm.drill.options import DrillOptions, prepare_data
from slurm.launch_data import safe_name
from slurm.node.environment import Backend
from slurm.plan import Resources
from vae.config import VARIANT_GROUPS


def read_options() -> DrillOptions:
    """What the flags say; packs made-up images if they are wanted and not there."""
    # the flags: a few; everything else is as in `launch`
    parser = _front.Parser(__doc__)
    add = parser.add_argument
    text = "slurm/profiles/NAME.yaml, or a YAML file: your cluster"
    add("--profile", default="", metavar="NAME", help=text)
    add("--variant", choices=tuple(VARIANT_GROUPS), default="both", help="which runs to interrupt")
    add("--gpus", type=int, default=1, metavar="N", help="GPUs of each run, over all its nodes together")
    add("--nodes", type=int, default=1, metavar="N", help="nodes of each run")
    add("--data", default="phantom:96", metavar="SHARDS|phantom:N", help="packed images, or made-up ones")
    add("--count", type=int, default=10, metavar="K", help="interruptions in all")
    add("--seed", type=int, default=0, metavar="S", help="of what happens when; names the study, too")
    add("--cluster", choices=("auto", "slurm", "local"), default="auto", help="as in launch")
    add("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where the two studies are kept")
    flags = parser.parse_args()

    # what they allow
    if flags.count < 1:
        raise SettingsError(f"--count {flags.count}; allowed: at least 1")
    resources = Resources(flags.gpus, flags.nodes)
    if flags.seed < 0:
        raise SettingsError(f"--seed {flags.seed}; allowed: 0 or more")
    backend = choose_backend(flags.cluster, bool(flags.profile))
    if backend is Backend.SLURM:
        require_slurm()
    data = prepare_data(flags.data, (flags.runs_dir / "drill-shards" / safe_name(flags.data)).resolve())
    return DrillOptions(
        flags.variant, resources, data, flags.count, flags.seed, backend, flags.profile, flags.runs_dir
    )


def main() -> int:
    options = read_options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        drill = begin_drill(options, [sys.executable, str(Path(__file__).with_name("launch.py"))])
        _front.log.info("%s", options.expectation())
        drill.play()
    except BaseException:
        stop_drill(options)
        raise
    problems = drill.problems()
    for line in drill.lines() + [f"problem: {problem}" for problem in problems]:
        print(line)
    print(drill.summary(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    _front.run(main)

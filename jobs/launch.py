"""Train, score and report a study, on a SLURM cluster or on this machine.

A study is a folder of runs, one for each variant and seed. Launching it does what is missing: pack the
images, train each run, score it, write the report. Run the same command again to go on after an
interruption, to see how far it is, or to add variants and seeds; what is done or queued is left alone.

Exit code: 0 = all that could be done is done or queued, 1 = a run failed, 2 = a mistake, 130 = interrupted.

examples:
  python jobs/launch.py --variant both --gpus 4                      # the published study
  python jobs/launch.py --variant both --gpus 4 --dry-run            # only show what would be submitted
  python jobs/launch.py --variant all --gpus 8 --nodes 2 --seeds 0 1 2 --profile example
  python jobs/launch.py --variant linear --gpus 1 --data phantom:200 --size 64 --extractor smoke
  python jobs/launch.py --variant both --gpus 4 --study low-lr --run.lr 3e-4 --run.epochs 30
"""

import shlex
import signal
import sys

import _front

from vae.config import VARIANT_GROUPS, RunConfig
from vae.scoring.inception_weights import EXTRACTORS

# Settings of a run that the launcher decides for each, and how.
ELSEWHERE = {
    "variant": "use --variant",
    "seed": "use --seeds",
    "data": "use --data",
    "image_size_px": "the packed images set the size; --size PX packs a SOURCE in that size",
}


def build_parser() -> _front.Parser:
    """About a dozen flags for this launch, and `--run.NAME` for every setting of a run."""
    parser = _front.Parser(__doc__)
    add = parser.add_argument
    text = "linear, direct, spatial; both = linear and direct (the published two); all = all three"
    add("--variant", required=True, choices=tuple(VARIANT_GROUPS), help=text)
    add("--gpus", type=int, default=1, metavar="N", help="GPUs of each run, over all its nodes together")
    text = "nodes of each run; --gpus must be a multiple of it"
    add("--nodes", type=int, default=1, metavar="N", help=text)
    text = "a folder that jobs/pack.py made; or what it packs (a folder of images, a CSV, phantom:N),\n"
    text += "then packed to shards/NAME first. Without it: the only packed data under shards/"
    add("--data", metavar="SHARDS|SOURCE", help=text)
    add("--size", type=int, metavar="PX", help="side of the images if a SOURCE is packed (default: 256)")
    add("--study", metavar="NAME", help="folder under --runs-dir (default: named after the data)")
    add("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one run of each variant per seed")
    text = "slurm; local = processes on this machine; debug = this very process, --gpus 1;\n"
    text += "auto = slurm where it is installed or with a --profile, else local"
    add("--cluster", choices=("auto", "slurm", "local", "debug"), default="auto", help=text)
    text = "slurm/profiles/NAME.yaml, or a YAML file: your cluster"
    add("--profile", default="", metavar="NAME", help=text)
    text = "on SLURM: runs of this launch that train, and that are scored, at once\n"
    text += "(as many as there is room for); later: jobs/throttle.py"
    add("--max-parallel", type=int, metavar="N", help=text)
    add("--dry-run", action="store_true", help="show the runs and the exact sbatch texts; change nothing")
    add("--wait", action="store_true", help="on SLURM: stay until the report is there and print the scores")
    add("--extractor", choices=EXTRACTORS, default="inception", help="network behind FID and IS")
    text = "fast leaves out what takes long: sampled latents, and how sure the floors are"
    add("--scores", choices=("full", "fast"), default="full", help=text)
    add("--inception-weights", default="", metavar="PATH", help="its weights (default: torch's hub cache)")
    parser.add_runs_dir()
    parser.add_class_arguments(RunConfig, "run", skip=set(ELSEWHERE))
    parser.instead = {f"--run.{name}": hint for name, hint in ELSEWHERE.items()}
    return parser


def main() -> int:
    argv = sys.argv[1:]
    flags = build_parser().parse_args(argv)
    # these import h5py, which --help need not wait for
    from slurm.launch import carry_out, check, read_launch
    from slurm.status_tables import scores_table, states_table

    launch = read_launch(flags)

    # show what is there, what would be submitted to the letter, and what is in the way or the command for it
    if flags.dry_run:
        requests = launch.missing_jobs()
        print(f"{states_table(launch.states())}\n")
        print(launch.backend.describe(requests, launch.code.folder), end="", flush=True)
        check(launch, is_dry=True)
        command = shlex.join(word for word in argv if word != "--dry-run")
        print(f"to do it: python jobs/launch.py {command}" if requests else "nothing is missing")
        return 0

    check(launch, is_dry=False)
    # do it, and show the runs, their scores if there are any, and where the report is
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end local processes as Ctrl-C does
    is_over = carry_out(launch, ["python", "jobs/launch.py", *argv], flags.wait)
    states = launch.states()
    print(states_table(states))
    if any(state.scores for state in states):
        print(f"\n{scores_table(states)}")
    if launch.report_path.exists():
        print(f"\nreport: {launch.report_path}")
    if not is_over:
        print(f"\nto see how far it is: python jobs/status.py {shlex.quote(str(launch.study_dir))}")
    return 0 if not is_over or launch.is_complete(states) else 1


if __name__ == "__main__":
    _front.run(main)

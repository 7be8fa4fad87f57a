"""Say in one sentence why each run is not done, and what to do.

From the study's own files, squeue, sacct and the logs, whichever of them can be had. What nobody knows is
called unknown. Words in brackets are SLURM's own.

examples:
  python jobs/why.py chest                      # every run of the study runs/chest that is not done
  python jobs/why.py chest/linear-s0            # one run
  python jobs/why.py /shared/runs/chest/linear-s0
"""

import _front

from slurm.diagnose.explain import explain
from slurm.diagnose.gather_case import gather
from vae.study import find_target, read_study


def main() -> None:
    """For a study, runs that are done are only counted."""
    flags = _front.Parser(__doc__).add_target().parse_args()
    study_dir, run = find_target(flags.what, flags.runs_dir)
    study = read_study(study_dir)
    cases = gather(study_dir, study, (run,) if run else study.runs)
    to_explain = [case for case in cases if run or not case.is_done]
    for case in to_explain:
        print(explain(case))
    if num_done := len(cases) - len(to_explain):
        print(f"{num_done} of {len(cases)} {'run is' if len(cases) == 1 else 'runs are'} done")


if __name__ == "__main__":
    _front.run(main)

"""Say in one sentence why each run is not done, and what to do.

From the study's own files, squeue, sacct and the logs, whichever of them can be had. What nobody knows is
called unknown. Words in brackets are SLURM's own.

examples:
  python jobs/why.py                            # every run in runs/ that is not done
  python jobs/why.py chest                      # ... of the study runs/chest
  python jobs/why.py chest/linear-s0            # one run
  python jobs/why.py /shared/runs/chest/linear-s0
"""

from itertools import chain
from pathlib import Path

import _front

from slurm.diagnose.case import Case
from slurm.diagnose.explain import explain
from slurm.diagnose.gather_case import gather
from slurm.job_records import read_jobs, read_studies
from slurm.job_states import ask_scheduler
from vae.study import find_target, read_study


def main() -> None:
    """Runs that are done are only counted, unless one is asked for."""
    flags = _front.Parser(__doc__).add_target(nargs="?").parse_args()
    if flags.what is None:
        cases = cases_of_all(flags.runs_dir)
    else:
        study_dir, run = find_target(flags.what, flags.runs_dir)
        study = read_study(study_dir)
        cases = [("", case) for case in gather(study_dir, study, (run,) if run else study.runs)]
        if run:
            print(explain(cases[0][1]))
            return
    for study_name, case in cases:
        if not case.is_done:
            print(f"{study_name}{explain(case)}")
    if num_done := sum(case.is_done for _, case in cases):
        print(f"{num_done} of {len(cases)} {'run is' if len(cases) == 1 else 'runs are'} done")


def cases_of_all(runs_dir: Path) -> list[tuple[str, Case]]:
    """The case of each run of all studies, by one look at SLURM, each with what to put before its name."""
    studies = read_studies(runs_dir)
    records = chain.from_iterable(read_jobs(study_dir, study) for study_dir, study in studies.items())
    scheduler = ask_scheduler(list(records))
    cases: list[tuple[str, Case]] = []
    for study_dir, study in studies.items():
        found = gather(study_dir, study, study.runs, lambda _: scheduler)
        cases += [(f"{study_dir.name}/", case) for case in found]
    return cases


if __name__ == "__main__":
    _front.run(main)

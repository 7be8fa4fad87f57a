"""What runs inside a job: tiny picklable callables that hold a path, and nothing else.

State lives on disk, so running a task again goes on where the last attempt stopped; that is all that
`checkpoint()` (which submitit calls before it requeues a job) has to arrange.

    python -m slurm.node.task train STUDY --index 0      the same, for sbatch scripts written by hand
"""

import argparse
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.errors import RunError, SettingsError, ToolkitError
from data_prep.json_records import Word
from data_prep.plain_text import log_to_stderr
from slurm.node.environment import Backend, JobEnvironment, find_job_environment, times_of
from slurm.node.rendezvous import rendezvous
from slurm.node.requeue import exit_after_stop, requeue_and_exit
from slurm.node.signals import STOP_SIGNAL, StopFlag, ignore_stop_signal
from vae.metrics import slowest_stop_s
from vae.provenance import read_attempts
from vae.run_dir import log_path
from vae.study import is_scored, is_trained, read_study

log = logging.getLogger(__name__)

# A job that was started again this often without one more saved step will not get any further.
MAX_IDLE_RESTARTS = 3

# Without a stop signal, a run stops by itself this long before its job's end, beside the time it takes to
# save twice. SLURM's stop signal comes earlier (sbatch.signal_lead_s).
LAST_CHANCE_S = 20


class JobKind(Word):
    """What a job does for a study."""

    PACK = "pack"
    FINALIZE = "finalize"
    TRAIN = "train"
    EVALUATE = "evaluate"
    REPORT = "report"


@dataclass(frozen=True)
class Task:
    """One job's work on the folder at `path`."""

    path: str

    def __call__(self, job_env: JobEnvironment | None = None) -> None:
        """Do the work, as the rank that the scheduler gave this process (or as `job_env`)."""
        job_env = job_env or find_job_environment()
        # standard error gets what rank 0 logs, and the warnings of all
        level = logging.INFO if job_env.rank == 0 else logging.WARNING
        log_to_stderr(level, "%(asctime)s %(message)s")
        logging.getLogger("submitit").propagate = False  # it has a handler of its own
        remove_unfinished_pickles(job_env)
        if job_env.backend is Backend.LOCAL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit would go on, but Ctrl-C means now
        self.work(job_env)
        ignore_stop_signal()

    def work(self, job_env: JobEnvironment) -> None:
        """What this kind of task does."""
        raise NotImplementedError

    def checkpoint(self) -> object:
        """What submitit should run after a requeue: the same again."""
        from submitit.helpers import DelayedSubmission  # a tenth of a second, which only a job can spare

        return DelayedSubmission(self)


@dataclass(frozen=True)
class TrainTask(Task):
    """Trains the run in the folder `path`."""

    def work(self, job_env: JobEnvironment) -> None:
        run_dir = Path(self.path)
        stop = StopFlag(signal.SIGTERM)  # scancel, scontrol requeue, preemption, Ctrl-C of a local launch
        write_logs_to(run_dir, JobKind.TRAIN, job_env)
        refuse_idle_restarts(run_dir, job_env)
        times = times_of(job_env)
        if "ends_s" in times:
            ends_s, now_s = times["ends_s"], time.time()
            early_s = 2 * slowest_stop_s(run_dir) + LAST_CHANCE_S
            stop.expires_s = max(ends_s - early_s, (now_s + ends_s) / 2)  # half the time is for work
        with rendezvous(job_env, run_dir):
            # these import torch, which reads the variables set above
            from vae.training.collectives import destroy_process_group
            from vae.training.trainer import train

            is_complete = train(run_dir, should_stop=stop, attempt=job_env.as_attempt(times))
            destroy_process_group()
        if not is_complete:
            exit_after_stop(job_env, stop)


@dataclass(frozen=True)
class EvaluateTask(Task):
    """Scores the run in the folder `path`."""

    def work(self, job_env: JobEnvironment) -> None:
        run_dir = Path(self.path)
        requeue_when_signalled(job_env)
        write_logs_to(run_dir, JobKind.EVALUATE, job_env)
        if is_trained(run_dir) and is_scored(run_dir, read_study(run_dir.parent)):
            log.info("%s is scored already; SLURM has started this job once more", run_dir.name)
            return
        with rendezvous(job_env, run_dir):
            from vae.scoring.evaluate import evaluate
            from vae.training.collectives import destroy_process_group

            evaluate(run_dir, read_study(run_dir.parent))
            destroy_process_group()


@dataclass(frozen=True)
class PackTask(Task):
    """Packs shards number `part`, `part + num_parts`, ... of the plan in the folder `path`."""

    part: int
    num_parts: int

    def work(self, job_env: JobEnvironment) -> None:
        requeue_when_signalled(job_env)
        from data_prep.packer import pack_part

        pack_part(Path(self.path), self.part, self.num_parts, job_env.cpus)


@dataclass(frozen=True)
class FinalizeTask(Task):
    """Joins the packed shards in the folder `path` under one manifest."""

    def work(self, job_env: JobEnvironment) -> None:
        requeue_when_signalled(job_env)
        from data_prep.packer import finalize

        finalize(Path(self.path))


@dataclass(frozen=True)
class ReportTask(Task):
    """Writes the report of the study in the folder `path`."""

    def work(self, job_env: JobEnvironment) -> None:
        requeue_when_signalled(job_env)
        from vae.report.report import write_report

        log.info("report: %s", write_report(Path(self.path)))


def requeue_when_signalled(job_env: JobEnvironment) -> None:
    """For work that starts again from what is on disk: requeue it as soon as the stop signal comes.

    Ranks above 0 wait to be ended with the job; if they went first, rank 0 might fail before it has requeued.
    """
    requeue = partial(requeue_and_exit, job_env, signal.getsignal(STOP_SIGNAL))
    StopFlag(at_once=requeue if job_env.rank == 0 else None)


def refuse_idle_restarts(run_dir: Path, job_env: JobEnvironment) -> None:
    """Raise RunError for a job that its scheduler restarts over and over without one more saved step."""
    steps = [attempt.from_step for attempt in read_attempts(run_dir) if attempt.job == job_env.job]
    newest = steps[-MAX_IDLE_RESTARTS - 1 :]
    if len(newest) > MAX_IDLE_RESTARTS and len(set(newest)) == 1:
        hint = "read logs/ in the run folder; allow more time (train_limit_min) or save more often "
        hint += "(--run.checkpoint_every_min), then launch again"
        idle = f"started {len(newest)} times at step {newest[0]} without getting further"
        raise RunError(f"{run_dir.name}: {idle}", hint)


def write_logs_to(run_dir: Path, kind: JobKind, job_env: JobEnvironment) -> None:
    """Let everything this process prints go to a file of its own: one per attempt and rank."""
    if job_env.backend is Backend.DEBUG:
        return
    path = log_path(run_dir, kind, job_env.tag, job_env.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"the log of rank {job_env.rank} goes on in {path}", flush=True)
    with path.open("ab") as file:  # the descriptors themselves, so that C libraries write there too
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def remove_unfinished_pickles(job_env: JobEnvironment) -> None:
    """Remove what submitit left half-written when it was killed; it would refuse to write over it."""
    folder = os.environ.get("SUBMITIT_FOLDER")
    if folder and job_env.backend is Backend.SLURM and job_env.rank == 0:
        for path in Path(folder).glob(f"{job_env.job}_*.save_tmp"):
            path.unlink(missing_ok=True)


def run_of(study_dir: Path, index: int) -> Path:
    """Folder of the `index`-th run of study.yaml, counted from 0; SettingsError if there are fewer."""
    runs = read_study(study_dir).runs
    if not 0 <= index < len(runs):
        hint = f"submit with --array=0-{len(runs) - 1}"
        raise SettingsError(f"{study_dir} has no run {index}; it has {len(runs)}: {', '.join(runs)}", hint)
    return study_dir / runs[index]


def main() -> None:
    """One array task of an array that was submitted by hand."""
    parser = argparse.ArgumentParser(prog="python -m slurm.node.task", allow_abbrev=False)
    parser.add_argument("kind", choices=(str(JobKind.TRAIN), str(JobKind.EVALUATE)))
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--index", type=int, required=True, help="the array task's index in its array")
    flags = parser.parse_args()
    task = TrainTask if flags.kind == JobKind.TRAIN else EvaluateTask
    task(str(run_of(flags.study.resolve(), flags.index)))()


if __name__ == "__main__":
    try:
        main()
    except ToolkitError as error:
        print(f"error: {error}", f"hint: {error.hint}" if error.hint else "", sep="\n", file=sys.stderr)
        sys.exit(2)

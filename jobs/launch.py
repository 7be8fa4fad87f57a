"""Train, score and report a study, on a SLURM cluster or on this machine.

A study is a folder of runs, one for each variant and seed. Launching it does what is missing: pack the
images, train each run, score it, write the report. Run the same command again to go on after an
interruption, to see how far it is, or to add variants and seeds; what is done or queued is left alone.

Exit code: 0 = all that could be done is done or queued, 1 = a run failed, 2 = a mistake, 130 = interrupted.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _front
from _data import SHARDS_DIR, Data, find_data, safe_name, write_plan

from data_prep.errors import ClusterError, SettingsError
from slurm.client import max_array_size, require_slurm
from slurm.code_snapshot import Snapshot, take_snapshot
from slurm.control import cancel_unsatisfiable, wait_until_settled
from slurm.diagnose.follow import LocalFollower, follow_jobs
from slurm.job_records import only_launcher, read_jobs, read_records
from slurm.local import run_debug, run_local
from slurm.node.environment import Backend
from slurm.plan import JobRequest, Resources, decide, with_cap
from slurm.profile import ClusterProfile, read_profile
from slurm.sbatch import check_path
from slurm.state import RunStatus, study_facts, study_states
from slurm.status_tables import scores_table, states_table
from slurm.submit import as_shell, check_accepted, choose_backend, script, submit
from vae.config import VARIANT_GROUPS, RunConfig
from vae.scoring import inception_weights as weights
from vae.study import (
    REPORT_FILE,
    RunState,
    Study,
    add_launch,
    check_name,
    check_run,
    is_trained,
    prepare_run,
    prepare_study,
    run_name,
    with_earlier_runs,
)

EXAMPLES = """\
  python jobs/launch.py --variant both --gpus 4                      # the published study
  python jobs/launch.py --variant both --gpus 4 --dry-run            # only show what would be submitted
  python jobs/launch.py --variant all --gpus 8 --nodes 2 --seeds 0 1 2 --profile example
  python jobs/launch.py --variant linear --gpus 1 --data phantom:200 --size 64 --extractor smoke
  python jobs/launch.py --variant both --gpus 4 --study low-lr --run.lr 3e-4 --run.epochs 30
"""

# Settings of a run that the launcher decides for each, and how.
ELSEWHERE = {
    "variant": "use --variant",
    "seed": "use --seeds",
    "data": "use --data",
    "image_size_px": "the packed images set the size; --size PX packs a SOURCE in that size",
}
# Folders that are usually a node's own; a job on another node would not find its run there.
PRIVATE_DIRS = ("/tmp", "/var/tmp", "/dev/shm", "/run")

log = logging.getLogger(__name__)


# --- what is asked for -------------------------------------------------------------------------


def build_parser() -> _front.Parser:
    """About a dozen flags for this launch, and `--run.NAME` for every setting of a run."""
    parser = _front.Parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--variant",
        required=True,
        choices=tuple(VARIANT_GROUPS),
        help="linear, direct, spatial; both = linear and direct (the published two); all = all three",
    )
    add("--gpus", type=int, default=1, metavar="N", help="GPUs of each run, over all its nodes together")
    add(
        "--nodes", type=int, default=1, metavar="N", help="nodes of each run; --gpus must be a multiple of it"
    )
    add(
        "--data",
        metavar="SHARDS|SOURCE",
        help="a folder that jobs/pack.py made; or what it packs (a folder of images, a CSV, phantom:N),\n"
        f"then packed to {SHARDS_DIR}/NAME first. Without it: the only packed data under {SHARDS_DIR}/",
    )
    add("--size", type=int, metavar="PX", help="side of the images if a SOURCE is packed (default: 256)")
    add("--study", metavar="NAME", help="folder under --runs-dir (default: named after the data)")
    add("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one run of each variant per seed")
    add(
        "--cluster",
        choices=("auto", "slurm", "local", "debug"),
        default="auto",
        help="slurm; local = processes on this machine; debug = this very process, --gpus 1;\n"
        "auto = slurm where it is installed or with a --profile, else local",
    )
    add(
        "--profile", default="", metavar="NAME", help="slurm/profiles/NAME.yaml, or a YAML file: your cluster"
    )
    add(
        "--max-parallel",
        type=int,
        metavar="N",
        help="on SLURM: runs of this launch that train, and that are scored, at once\n"
        "(as many as there is room for); later: jobs/throttle.py",
    )
    add("--dry-run", action="store_true", help="show the runs and the exact sbatch texts; change nothing")
    add("--wait", action="store_true", help="on SLURM: stay until the report is there and print the scores")
    add("--extractor", choices=weights.EXTRACTORS, default="inception", help="network behind FID and IS")
    add("--inception-weights", default="", metavar="PATH", help="its weights (default: torch's hub cache)")
    parser.add_runs_dir()
    parser.add_class_arguments(RunConfig, "run", skip=set(ELSEWHERE))
    parser.instead = {f"--run.{name}": hint for name, hint in ELSEWHERE.items()}
    return parser


@dataclass(frozen=True)
class Launch:
    """Everything the flags decide."""

    study_dir: Path
    study: Study
    """All runs of the study, those of earlier launches first."""
    configs: dict[str, RunConfig]
    """The runs asked for, by name."""
    data: Data
    resources: Resources
    backend: Backend
    profile: ClusterProfile
    max_parallel: int
    """Runs that may train at once on SLURM; 0 = as many as there is room for."""
    code: Snapshot
    """What the jobs will run."""

    def requests(self) -> tuple[JobRequest, ...]:
        """The jobs that are missing now."""
        facts = study_facts(
            self.study_dir, self.study, tuple(self.configs), self.data.folder, self.data.num_shards
        )
        if self.backend is Backend.SLURM:
            requests = decide(facts, self.resources, self.profile.pack_jobs, max_array_size())
            return with_cap(requests, self.max_parallel)
        if job := facts.any_job():
            raise ClusterError(
                f"job {job} is at work on this study", "wait for it, or cancel it: scancel " + job
            )
        return decide(facts, self.resources, pack_jobs=1)

    def states(self) -> list[RunStatus]:
        """What the runs asked for are doing."""
        return [state for state in study_states(self.study_dir, self.study) if state.name in self.configs]


def read_launch(asked: Any) -> Launch:
    """Turn flags into a launch; reads what is there, writes nothing."""
    resources = Resources(asked.gpus, asked.nodes)
    if asked.max_parallel is not None and asked.max_parallel < 1:
        raise SettingsError(f"--max-parallel {asked.max_parallel}; allowed: at least 1")
    profile = read_profile(asked.profile)
    backend = choose_backend(asked.cluster, bool(asked.profile))
    data = find_data(asked.data, asked.size)
    name = check_name(safe_name(data.folder.name) if asked.study is None else asked.study)
    study_dir = (asked.runs_dir / name).resolve()
    configs = {
        run_name(variant, seed): RunConfig(
            **{
                **asked.run.as_dict(),
                "variant": variant,
                "seed": seed,
                "data": str(data.folder),
                "image_size_px": data.image_size_px,
            }
        )
        for variant in VARIANT_GROUPS[asked.variant]
        for seed in asked.seeds
    }
    own_weights = str(Path(asked.inception_weights).resolve()) if asked.inception_weights else ""
    study = with_earlier_runs(study_dir, Study(name, tuple(configs), asked.extractor, own_weights))
    code = take_snapshot(study_dir)
    return Launch(study_dir, study, configs, data, resources, backend, profile, asked.max_parallel or 0, code)


# --- checks that cost seconds here and hours in the queue ------------------------------------------


def preflight(launch: Launch, is_dry: bool) -> None:
    """Raise a ToolkitError for anything that would only fail on the cluster."""
    check_path(launch.study_dir)
    check_path(launch.data.folder)
    for name, config in launch.configs.items():
        check_run(launch.study_dir / name, config)
        check_batch(config, launch)
    weights.check(launch.study)
    check_writable(launch.study_dir)
    if launch.data.num_shards is not None:
        check_writable(launch.data.folder)
    if launch.backend is Backend.DEBUG and launch.resources.gpus != 1:
        raise SettingsError("--cluster debug is one process", "use --gpus 1, or --cluster local")
    if launch.backend is Backend.LOCAL:
        check_this_machine(launch.resources)
    if launch.backend is Backend.SLURM:
        if not is_dry:
            require_slurm()
        warn_of_private_folders(launch)


def check_batch(config: RunConfig, launch: Launch) -> None:
    """Raise SettingsError if a batch cannot be shared out among the GPUs, or is larger than the data."""
    least = launch.resources.gpus * config.accumulate
    if config.batch_size < least:
        raise SettingsError(
            f"batch_size {config.batch_size} cannot be shared by {least} (GPUs x accumulate)",
            f"use fewer GPUs, or --run.batch_size {least} (which changes the result)",
        )
    if config.batch_size > (images := launch.data.num_train_images):
        raise SettingsError(
            f"batch_size {config.batch_size} is more than the {images} training images",
            "lower --run.batch_size, or use more data",
        )


def check_writable(folder: Path) -> None:
    """Raise SettingsError unless files can be made in `folder`, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        hint = "choose another place (--runs-dir for studies), or ask its owner"
        raise SettingsError(f"{existing} is not a folder this user can write to", hint)


def check_this_machine(resources: Resources) -> None:
    """Raise ClusterError if a local run needs several nodes, or more GPUs than there are; warn of none."""
    if resources.nodes > 1:
        raise ClusterError(
            f"--nodes {resources.nodes}, but this is one machine and no SLURM", "use --nodes 1"
        )
    gpus = num_gpus_here()
    if gpus == 0:
        log.warning(
            "warning: no NVIDIA GPU here; --gpus %d means as many processes on the CPU", resources.gpus
        )
    elif gpus < resources.gpus:
        raise ClusterError(f"--gpus {resources.gpus}, but this machine has {gpus}", f"use --gpus {gpus}")


def num_gpus_here() -> int:
    """GPUs of this machine, as NVIDIA's driver counts them; torch, which knows more, would take seconds."""
    if shutil.which("nvidia-smi") is None:
        return 0
    shown = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in shown.stdout.splitlines())


def warn_of_private_folders(launch: Launch) -> None:
    """Warn of folders that a node is unlikely to share with this machine."""
    for folder in (launch.study_dir, launch.data.folder):
        if str(folder).startswith(tuple(f"{private}/" for private in PRIVATE_DIRS)):
            log.warning("warning: %s is probably not shared with the nodes; jobs would not find it", folder)


# --- doing it --------------------------------------------------------------------------------------


def prepare(launch: Launch) -> None:
    """Write the plan of data to pack, study.yaml, and run.yaml of every run that is not trained yet."""
    write_plan(launch.data)
    prepare_study(launch.study_dir, launch.study)
    if launch.backend is not Backend.DEBUG:  # which runs in this very process
        launch.code.write()
    for name, config in launch.configs.items():
        if not is_trained(launch.study_dir / name):
            prepare_run(launch.study_dir / name, config)


@contextmanager
def sole_launcher(launch: Launch) -> Iterator[None]:
    """Nobody else launches this study, or packs its images, in the meantime."""
    with ExitStack() as locks:
        locks.enter_context(only_launcher(launch.study_dir))
        if launch.data.num_shards is not None:
            locks.enter_context(only_launcher(launch.data.folder))
        yield


def clear_queue(launch: Launch) -> None:
    """Have the queue settle: no job that SLURM has yet to evaluator, none that can never start."""
    if launch.backend is not Backend.SLURM:
        return
    records = read_jobs(launch.study_dir, launch.study)
    if launch.data.num_shards is not None:
        records += read_records(launch.data.folder)
    wait_until_settled(records)
    if dead := cancel_unsatisfiable(records):
        log.info("cancelled, for what they waited for has failed: %s", ", ".join(dead))


def accepted_requests(launch: Launch) -> tuple[JobRequest, ...]:
    """The jobs that are missing.

    Raises:
        ClusterError: SLURM would not take one of them.
    """
    requests = launch.requests()
    if launch.backend is Backend.SLURM:
        for request in requests:
            check_accepted(request, launch.profile, launch.code.folder)
    return requests


def note_launch(launch: Launch, requests: Sequence[JobRequest], words: Sequence[str]) -> None:
    """Keep the command with the study, if it is about to start anything."""
    tasks = [task for request in requests if request.resources for task in request.tasks.values()]
    runs = dict.fromkeys(Path(task.path).name for task in tasks)  # a run is trained, then scored
    if requests:
        add_launch(launch.study_dir, ["python", "jobs/launch.py", *words], list(runs))


def carry_out(launch: Launch, requests: Sequence[JobRequest], must_wait: bool) -> int:
    """Run or submit the jobs; returns the exit code: 0 if all that could be done is done or queued."""
    if launch.backend is Backend.SLURM:
        submit(requests, launch.profile, launch.code.folder)
        if not must_wait:
            show(launch)
            print(f"\nto see how far it is: python jobs/status.py {shlex.quote(str(launch.study_dir))}")
            return 0
        try:
            follow_jobs(launch.study_dir, launch.study)
        except KeyboardInterrupt:
            log.info("the jobs go on; python jobs/cancel.py %s ends them", shlex.quote(str(launch.study_dir)))
            raise
    elif launch.backend is Backend.LOCAL:
        for reason in run_local(requests, launch.code.folder, LocalFollower()):
            log.error("failed: %s", reason)
    else:
        run_debug(requests)
    states = show(launch)
    return 0 if all(state.state is RunState.DONE for state in states) and report_of(launch).exists() else 1


def show(launch: Launch) -> list[RunStatus]:
    """Print the runs, their scores if there are any, and where the report is; returns the runs' states."""
    states = launch.states()
    print(states_table(states))
    if any(state.scores for state in states):
        print(f"\n{scores_table(states)}")
    if report_of(launch).exists():
        print(f"\nreport: {report_of(launch)}")
    return states


def report_of(launch: Launch) -> Path:
    """Where the study's report is, or will be."""
    return launch.study_dir / REPORT_FILE


def show_plan(launch: Launch, requests: Sequence[JobRequest], words: Sequence[str]) -> None:
    """Print what is there, what would be submitted to the letter, and the command that does it."""
    print(f"{states_table(launch.states())}\n")
    keys = [request.key for request in requests]
    for request in requests:
        if launch.backend is Backend.SLURM:
            print(f"{as_shell(request, keys)}\n{script(request, launch.profile, launch.code.folder)}EOF\n)\n")
        else:
            print(f"{request.kind}: {', '.join(Path(task.path).name for task in request.tasks.values())}")
    if requests:
        print("to do it: python jobs/launch.py " + shlex.join(word for word in words if word != "--dry-run"))
    else:
        print("nothing is missing")


def main() -> int:
    """Decide, check, then show or do."""
    words = sys.argv[1:]
    asked = build_parser().parse_args(words)
    launch = read_launch(asked)
    preflight(launch, asked.dry_run)
    if asked.dry_run:
        show_plan(launch, launch.requests(), words)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end local processes as Ctrl-C does
    if not launch.study_dir.exists():
        accepted_requests(launch)  # what SLURM refuses leaves no folder behind
    with sole_launcher(launch):
        # another launch may have added runs until a moment ago
        launch = replace(launch, study=with_earlier_runs(launch.study_dir, launch.study))
        clear_queue(launch)
        requests = accepted_requests(launch)
        prepare(launch)
        note_launch(launch, requests, words)
        return carry_out(launch, requests, asked.wait)


if __name__ == "__main__":
    _front.run(main)

"""One launch of a study: what its flags decide, the checks before it, the files it prepares, its jobs."""

import logging
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from data_prep.errors import SettingsError
from data_prep.files import for_each_file
from slurm.backends import LaunchBackend, backend_of, choose_backend
from slurm.cancel_throttle import settle
from slurm.code_snapshot import Snapshot, take_snapshot
from slurm.diagnose.follow import follow_jobs
from slurm.job_records import JobRecord, only_launcher, read_jobs, read_records
from slurm.launch_data import Data, find_data, safe_name, write_data_plan
from slurm.plan import JobRequest, Resources
from slurm.preflight import check_batch, check_writable
from slurm.profile import read_profile
from slurm.sbatch import check_path
from slurm.study_state import RunStatus, study_facts, study_states
from vae.config import VARIANT_GROUPS, RunConfig
from vae.run_dir import REPORT_FILE, check_name, run_name
from vae.run_state import RunState
from vae.scoring import inception_weights
from vae.study import (
    Study,
    add_launch,
    check_replacement,
    check_run,
    is_trained,
    prepare_run,
    prepare_study,
    with_earlier_runs,
)

log = logging.getLogger(__name__)


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
    backend: LaunchBackend
    code: Snapshot
    """What the jobs will run."""

    @property
    def report_path(self) -> Path:
        """Where the study's report is, or will be."""
        return self.study_dir / REPORT_FILE

    def missing_jobs(self) -> tuple[JobRequest, ...]:
        """The jobs that are missing now."""
        num_shards = None if self.data.plan is None else len(self.data.plan.shards)
        facts = study_facts(self.study_dir, self.study, tuple(self.configs), self.data.folder, num_shards)
        return self.backend.missing_jobs(facts, self.resources)

    def accepted_jobs(self) -> tuple[JobRequest, ...]:
        """The same; ClusterError if SLURM would not take one of them."""
        requests = self.missing_jobs()
        self.backend.check_accepted(requests, self.code.folder)
        return requests

    def records(self) -> list[JobRecord]:
        """Earlier jobs of the study, and those that pack its images."""
        packing = [] if self.data.plan is None else read_records(self.data.folder)
        return read_jobs(self.study_dir, self.study) + packing

    def states(self) -> list[RunStatus]:
        """What the runs asked for are doing, by their numbers in the study as it is now."""
        study = with_earlier_runs(self.study_dir, self.study)
        return [state for state in study_states(self.study_dir, study) if state.name in self.configs]

    def is_complete(self, states: Sequence[RunStatus]) -> bool:
        """Whether all the runs asked for are done, and reported."""
        return all(state.state is RunState.DONE for state in states) and self.report_path.exists()


def read_launch(flags: Any) -> Launch:
    """Turn flags of jobs/launch.py into a launch; reads what is there, writes nothing."""
    # What it costs, and where.
    resources = Resources(flags.gpus, flags.nodes)
    if flags.max_parallel is not None and flags.max_parallel < 1:
        raise SettingsError(f"--max-parallel {flags.max_parallel}; allowed: at least 1")
    kind = choose_backend(flags.cluster, bool(flags.profile))
    backend = backend_of(kind, read_profile(flags.profile), flags.max_parallel or 0)
    # On which images, in which study.
    data = find_data(flags.data, flags.size)
    name = check_name(safe_name(data.folder.name) if flags.study is None else flags.study)
    study_dir = (flags.runs_dir / name).resolve()
    settings = {**flags.run.as_dict(), "data": str(data.folder), "image_size_px": data.image_size_px}
    configs = {
        run_name(variant, seed): RunConfig(**{**settings, "variant": variant, "seed": seed})
        for variant, seed in product(VARIANT_GROUPS[flags.variant], flags.seeds)
    }
    weights_path = str(Path(flags.inception_weights).resolve()) if flags.inception_weights else ""
    own = Study(name, tuple(configs), flags.extractor, weights_path, flags.scores)
    study = with_earlier_runs(study_dir, own)
    return Launch(study_dir, study, configs, data, resources, backend, take_snapshot(study_dir))


def check(launch: Launch, is_dry: bool) -> None:
    """Raise a ToolkitError for anything that would only fail in a job."""
    folders = (launch.study_dir, launch.data.folder)
    for folder in folders:
        check_path(folder)
    for name, config in launch.configs.items():
        check_run(launch.study_dir / name, config)
        check_batch(config, launch.resources.gpus, launch.data.num_train_images)
    inception_weights.check(launch.study)
    check_replacement(launch.study_dir, launch.study, launch.study.runs)
    check_writable(launch.study_dir)
    if launch.data.plan is not None:
        check_writable(launch.data.folder)
    launch.backend.check(launch.resources, folders, is_dry)


def carry_out(launch: Launch, command: Sequence[str], must_wait: bool) -> bool:
    """Submit or run the missing jobs; whether nothing is left to wait for. ClusterError if that fails."""
    if not launch.study_dir.exists():
        launch.accepted_jobs()  # what SLURM refuses leaves no folder behind
    packing = nullcontext() if launch.data.plan is None else only_launcher(launch.data.folder)
    with only_launcher(launch.study_dir), packing:
        # Another launch may have added runs, and its jobs may have ended, until a moment ago.
        launch = replace(launch, study=with_earlier_runs(launch.study_dir, launch.study))
        settle(launch.records())
        requests = launch.accepted_jobs()
        # Write down what the jobs will read, then start them.
        write_down(launch, requests, command)
        launch.backend.start(requests, launch.code)
        # Stay until none is queued or running.
        if launch.backend.goes_on_alone and must_wait:
            try:
                follow_jobs(launch.study_dir, launch.study)
            except KeyboardInterrupt:
                study = shlex.quote(str(launch.study_dir))
                log.info("the jobs go on; python jobs/cancel.py %s ends them", study)
                raise
    return must_wait or not launch.backend.goes_on_alone


def write_down(launch: Launch, requests: Sequence[JobRequest], command: Sequence[str]) -> None:
    """Write the plan of data to pack, study.yaml, run.yaml of every run not trained yet, and the command."""
    write_data_plan(launch.data)
    prepare_study(launch.study_dir, launch.study)
    folders = {launch.study_dir / name: config for name, config in launch.configs.items()}
    untrained = {folder: config for folder, config in folders.items() if not is_trained(folder)}
    for_each_file(prepare_run, untrained.keys(), untrained.values())
    tasks = chain.from_iterable(request.tasks.values() for request in requests if request.resources)
    runs = dict.fromkeys(Path(task.path).name for task in tasks)  # once each: a run is trained, then scored
    if requests:
        add_launch(launch.study_dir, command, list(runs))

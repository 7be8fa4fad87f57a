"""Where the jobs of a launch run: on SLURM, as processes of this machine, or in this very process."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import ClusterError, SettingsError
from slurm import client
from slurm.code_snapshot import Snapshot
from slurm.diagnose.follow import LocalFollower
from slurm.local import run_debug, run_local
from slurm.node.environment import Backend
from slurm.plan import JobRequest, Resources, StudyFacts, decide, with_cap
from slurm.preflight import check_this_machine, warn_of_private_folders
from slurm.profile import ClusterProfile
from slurm.sbatch import sbatch_text
from slurm.submit import as_shell, check_accepted, submit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlurmBackend:
    """Jobs and arrays of SLURM, asked for as a site's profile says."""

    profile: ClusterProfile
    max_parallel: int = 0
    """Runs that may train at once; 0 = as many as there is room for."""
    goes_on_alone = True
    """Whether its jobs go on when the launcher has ended."""

    def check(self, resources: Resources, folders: Sequence[Path], is_dry: bool) -> None:
        """Raise a ToolkitError for what would only fail in a job; `folders` are those that jobs work in."""
        if not is_dry:
            client.require_slurm()
        warn_of_private_folders(folders)

    def missing_jobs(self, facts: StudyFacts, resources: Resources) -> tuple[JobRequest, ...]:
        """The jobs that a study still needs, in order; ClusterError if they cannot join what is at work."""
        requests = decide(facts, resources, self.profile.pack_jobs, client.max_array_size())
        return with_cap(requests, self.max_parallel)

    def check_accepted(self, requests: Sequence[JobRequest], code_dir: Path) -> None:
        """Raise ClusterError if a job would be refused."""
        for request in requests:
            check_accepted(request, self.profile, code_dir)

    def describe(self, requests: Sequence[JobRequest], code_dir: Path) -> str:
        """What `start` would do; scripts to the letter."""
        keys = [request.key for request in requests]
        calls = [as_shell(request, keys) for request in requests]
        texts = [sbatch_text(request, self.profile, code_dir) for request in requests]
        return "".join(f"{call}\n{text}EOF\n)\n\n" for call, text in zip(calls, texts, strict=True))

    def start(self, requests: Sequence[JobRequest], code: Snapshot) -> None:
        """Submit the jobs, or run them to their end."""
        if requests:
            code.write()
        submit(requests, self.profile, code.folder)


class LocalBackend:
    """Processes of this machine, one run after another, behind the same functions."""

    goes_on_alone = False

    def check(self, resources: Resources, folders: Sequence[Path], is_dry: bool) -> None:
        check_this_machine(resources)

    def missing_jobs(self, facts: StudyFacts, resources: Resources) -> tuple[JobRequest, ...]:
        if job := facts.any_job():
            hint = f"wait for it, or cancel it: scancel {job}"
            raise ClusterError(f"job {job} is at work on this study", hint)
        return decide(facts, resources, pack_jobs=1)

    def check_accepted(self, requests: Sequence[JobRequest], code_dir: Path) -> None:
        """Nobody could refuse them."""

    def describe(self, requests: Sequence[JobRequest], code_dir: Path) -> str:
        names = [", ".join(Path(task.path).name for task in request.tasks.values()) for request in requests]
        return "".join(f"{request.kind}: {text}\n" for request, text in zip(requests, names, strict=True))

    def start(self, requests: Sequence[JobRequest], code: Snapshot) -> None:
        if requests:
            code.write()
        for reason in run_local(requests, code.folder, LocalFollower()):
            log.error("failed: %s", reason)


class DebugBackend(LocalBackend):
    """This very process, with the code it has loaded; an error is raised where it happens."""

    def check(self, resources: Resources, folders: Sequence[Path], is_dry: bool) -> None:
        if resources.gpus != 1:
            raise SettingsError("--cluster debug is one process", "use --gpus 1, or --cluster local")

    def start(self, requests: Sequence[JobRequest], code: Snapshot) -> None:
        run_debug(requests)


LaunchBackend = SlurmBackend | LocalBackend


def choose_backend(wanted: str, has_profile: bool) -> Backend:
    """Where to run. `auto` takes SLURM where it is installed, and for a profile, which is about SLURM.

    It does not ask whether SLURM answers: while its controller is down, nothing may begin on a login node.
    """
    if wanted != "auto":
        return Backend(wanted)
    return Backend.SLURM if has_profile or client.has_programs() else Backend.LOCAL


def backend_of(kind: Backend, profile: ClusterProfile, max_parallel: int = 0) -> LaunchBackend:
    """What runs the jobs of a launch."""
    if kind is Backend.SLURM:
        return SlurmBackend(profile, max_parallel)
    return LocalBackend() if kind is Backend.LOCAL else DebugBackend()

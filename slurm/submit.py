"""Hands job requests to sbatch.

submitit gives the pickle on disk, the process that runs it on the node, and the requeue; the script for
sbatch is ours (`sbatch.sbatch_text`), so a dry run shows exactly what would be submitted.
"""

import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import ClusterError
from data_prep.files import write_text
from slurm import client
from slurm.job_records import JobRecord, add_record, read_records
from slurm.job_states import on_slurm, scheduler_of
from slurm.local import UNLIMITED_RESTARTS
from slurm.node.environment import Backend
from slurm.node.task import JobKind, Task
from slurm.plan import JobRequest
from slurm.private_folder import make_private
from slurm.profile import ClusterProfile
from slurm.sbatch import limit_min, sbatch_text
from vae.run_dir import JOBS_DIR

log = logging.getLogger(__name__)


def sbatch_options(request: JobRequest, ids: dict[str, str]) -> list[str]:
    """What sbatch is told beside the script; `ids` are the job ids of the plan's keys, where submitted."""
    pairs = (after.split(":", 1) for after in request.after)
    waits = [f"{condition}:{ids.get(target, target)}" for condition, target in pairs]
    return ["--parsable", *([f"--dependency={','.join(waits)}"] if waits else [])]


def check_accepted(request: JobRequest, profile: ClusterProfile, code_dir: Path) -> None:
    """Have SLURM check the script without submitting it; ClusterError with its words on what is wrong."""
    hand_over(request, sbatch_text(request, profile, code_dir), "--test-only")


def submit(requests: Sequence[JobRequest], profile: ClusterProfile, code_dir: Path) -> dict[str, str]:
    """Submit the requests in order; returns the job id of each key. Each is recorded as soon as it is queued.

    Raises ClusterError if sbatch refuses one; those before it stay queued, and launching again adds the rest.
    """
    if ignored := sorted(name for name in os.environ if name.startswith("SBATCH_")):
        log.warning("not passed on: %s; put such settings into a cluster profile", ", ".join(ignored))
    ids: dict[str, str] = {}
    for request in requests:
        ids[request.key] = submit_one(request, profile, code_dir, ids)
        log.info("submitted %s: job %s", request.name, ids[request.key])
        if request.kind is JobKind.REPORT:
            cancel_older_reports(request.folder, ids[request.key])
    return ids


def cancel_older_reports(study_dir: Path, newest: str) -> None:
    """Cancel the waiting reports of earlier launches: the newest waits for all that they wait for."""
    records = [record for record in read_records(study_dir) if record.kind is JobKind.REPORT]
    queue = scheduler_of(records, client.queue()).queue or {}
    ids = {record.id for record in on_slurm(records)} - {newest}
    if waiting := sorted(job for job in ids & queue.keys() if queue[job].state == "PENDING"):
        client.cancel(*waiting)


def submit_one(request: JobRequest, profile: ClusterProfile, code_dir: Path, ids: dict[str, str]) -> str:
    """Queue one job or array, record it, and put the pickles where its array tasks look for them."""
    from submitit.core.utils import JobPaths

    jobs_dir = make_private(request.folder / JOBS_DIR)
    limit = limit_min(request.kind, profile)
    pickles = {index: write_pickle(jobs_dir, task, limit) for index, task in request.tasks.items()}
    text = sbatch_text(request, profile, code_dir)
    try:
        answer = hand_over(request, text, *sbatch_options(request, ids))
    except ClusterError:
        for path in pickles.values():
            path.unlink()
        raise
    job = answer.strip().split(";")[0]  # `--parsable` may add the cluster's name
    record = JobRecord.of(request, job, Backend.SLURM)
    add_record(request.folder, record)
    for index, path in pickles.items():
        path.rename(JobPaths(jobs_dir, record.array_task(index)).submitted_pickle)
    write_text(jobs_dir / f"{job}.sbatch", text)
    return job


def write_pickle(jobs_dir: Path, task: Task, limit: int) -> Path:
    """Write what submitit's process on the node will load, under a name of its own."""
    from submitit.core.utils import DelayedSubmission

    delayed = DelayedSubmission(task)
    delayed.set_timeout(limit, UNLIMITED_RESTARTS)
    path = jobs_dir / f"{uuid.uuid4().hex}.pkl"
    delayed.dump(path)
    return path


def hand_over(request: JobRequest, text: str, *options: str) -> str:
    """Give a script to sbatch; returns what it says. Raises as `check_accepted`."""
    try:
        return client.sbatch(text, *options)
    except client.SlurmRefused as error:
        reason = error.words.replace("sbatch: ", "").replace("error: ", "")
        hint = "change the cluster profile (--profile), --gpus or --nodes; see slurm/profiles/example.yaml"
        raise ClusterError(f"SLURM does not accept the job {request.name}: {reason}", hint) from error


def as_shell(request: JobRequest, keys: Sequence[str]) -> str:
    """The sbatch call as one would type it, with shell variables for ids that are not known yet."""
    names = {key: key.replace("-", "_") for key in keys}
    options = sbatch_options(request, {key: f"${name}" for key, name in names.items()})
    return f"{names[request.key]}=$(sbatch {' '.join(options)} <<'EOF'"

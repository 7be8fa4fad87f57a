"""jobs.json: the jobs that were submitted for a study or a data folder, and the lock of its launcher."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_prep.errors import ClusterError
from data_prep.files import only_holder, write_json
from slurm.plan import JobRequest
from vae.study import (
    PROVENANCE_FILE,
    Study,
    read_json,
)

JOBS_FILE = "jobs.json"
JOBS_LOCK_FILE = ".jobs.lock"
JOBS_LOCK_WAIT_S = 10.0
LOCK_FILE = ".launch.lock"


@dataclass(frozen=True)
class JobRecord:
    """One submitted job or array, as jobs.json keeps it."""

    id: str
    kind: str
    cluster: str
    """slurm or local."""
    is_array: bool
    indices: tuple[int, ...]
    """Array indices, which are positions in study.yaml."""
    host: str
    """Machine it was submitted from."""
    offset: int = 0
    """Position of the element with array index 0."""
    end: str = ""
    """How a local job was ended on purpose: cancelled or interrupted. Of its own jobs SLURM knows that."""
    name: str = ""
    """Job name; SLURM may give the same id again to something else."""

    @classmethod
    def of(cls, request: JobRequest, job: str, cluster: str) -> JobRecord:
        """The record of a request that has just become job `job`."""
        is_array = request.is_array and cluster == "slurm"
        host = socket.gethostname()
        indices = tuple(request.tasks)
        return cls(job, request.kind, cluster, is_array, indices, host, request.offset, name=request.name)

    def array_task(self, index: int) -> str:
        """Id of one element, as squeue and sacct write it."""
        return f"{self.id}_{index - self.offset}" if self.is_array else self.id


def read_records(folder: Path) -> list[JobRecord]:
    """The jobs submitted for a study or data folder, oldest first.

    Raises:
        ClusterError: the file that tells is damaged, so what runs might be started twice.
    """
    path = folder / JOBS_FILE
    known = (read_json(path) or {}).get("jobs")
    if known is None and path.exists():
        raise ClusterError(
            f"{path} is damaged, so nobody knows which jobs are at work",
            "see that squeue shows none of its jobs, then remove the file: it is written anew",
        )
    return [JobRecord(**{**job, "indices": tuple(job["indices"])}) for job in known or ()]


def read_jobs(study_dir: Path, study: Study) -> list[JobRecord]:
    """The jobs submitted for a study, those submitted by hand included, oldest first."""
    known = read_records(study_dir)
    ids = {record.id for record in known}
    by_hand = []
    for index, name in enumerate(study.runs):
        attempts = (read_json(study_dir / name / PROVENANCE_FILE) or {}).get("attempts", [])
        last = attempts[-1] if attempts else {}
        if last.get("cluster") == "slurm" and last["job"].split("_")[0] not in ids:
            by_hand.append(JobRecord(last["job"], "train", "slurm", False, (index,), last.get("host", "")))
    return [*by_hand, *known]


def add_record(folder: Path, record: JobRecord) -> None:
    """Remember a submitted job."""
    with _changing(folder) as records:
        records.append(record)


def note_end(folder: Path, job: str, how: str) -> None:
    """Remember that local job `job` is ended on purpose; what was noted first stands."""
    with _changing(folder) as records:
        records[:] = [replace(known, end=known.end or how) if known.id == job else known for known in records]


@contextmanager
def _changing(folder: Path) -> Iterator[list[JobRecord]]:
    """The records of a folder, written back after the block; a launcher and `cancel` may meet here."""
    with only_holder(folder / JOBS_LOCK_FILE, JOBS_LOCK_WAIT_S) as is_ours:
        if not is_ours:
            raise ClusterError(f"another process keeps {folder / JOBS_FILE} locked", "end it, and try again")
        records = read_records(folder)
        yield records
        write_json(folder / JOBS_FILE, {"jobs": [asdict(record) for record in records]})


@contextmanager
def only_launcher(study_dir: Path) -> Iterator[None]:
    """Hold the study's lock, which the system itself drops when this process ends, however it ends.

    Raises:
        ClusterError: another launcher holds it.
    """
    with only_holder(study_dir / LOCK_FILE, wait_s=0) as is_ours:
        if not is_ours:
            raise ClusterError(
                f"another launch of {study_dir} is at work", "wait for it, or end it, then launch again"
            )
        yield

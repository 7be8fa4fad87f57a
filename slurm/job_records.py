"""jobs.json: the jobs that were submitted for a study or a data folder, and the lock of its launcher."""

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from data_prep.errors import ClusterError, DamagedFile, SettingsError, ToolkitError
from data_prep.files import only_holder
from data_prep.json_records import Record, read_record, write_record
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from slurm.plan import JobRequest
from vae.provenance import Attempt, read_attempts
from vae.run_dir import JOBS_FILE, JOBS_LOCK_FILE, LAUNCH_LOCK_FILE
from vae.study import Study, find_studies, read_study

log = logging.getLogger(__name__)

JOBS_LOCK_WAIT_S = 10.0

Attempts = Mapping[str, tuple[Attempt, ...]]
EndOnPurpose = Literal["cancelled", "interrupted"]


class JobRecord(Record, frozen=True):
    """One submitted job or array."""

    id: str
    kind: JobKind
    cluster: Backend
    is_array: bool
    indices: tuple[int, ...]
    """Positions in study.yaml of the runs it works on."""
    host: str
    """Machine it was submitted from."""
    offset: int = 0
    """Position of the array task with index 0."""
    end: EndOnPurpose | Literal[""] = ""
    """How a local job was ended on purpose. Of its own jobs SLURM knows that."""
    name: str = ""
    """Job name; SLURM may give the same id again to something else."""

    @classmethod
    def of(cls, request: JobRequest, job: str, cluster: Backend) -> "JobRecord":
        """The record of a request that has just become job `job`."""
        return cls(
            id=job,
            kind=request.kind,
            cluster=cluster,
            is_array=request.is_array and cluster is Backend.SLURM,
            indices=tuple(request.tasks),
            host=socket.gethostname(),
            offset=request.offset,
            name=request.name,
        )

    def array_task(self, index: int) -> str:
        """Id of one of its array tasks, or of the job if it is none, as squeue and sacct write it."""
        return f"{self.id}_{index - self.offset}" if self.is_array else self.id


class JobList(Record, frozen=True):
    """jobs.json."""

    IF_DAMAGED = "see that squeue shows none of its jobs, then remove the file: it is written anew"

    jobs: tuple[JobRecord, ...] = ()


def read_records(folder: Path) -> list[JobRecord]:
    """The jobs submitted for a study or data folder, oldest first; DamagedFile if nobody knows which."""
    return list((read_record(folder / JOBS_FILE, JobList) or JobList()).jobs)


def read_jobs(study_dir: Path, study: Study, known: Attempts | None = None) -> list[JobRecord]:
    """The jobs submitted for a study, those submitted by hand included, oldest first.

    `known` are the attempts at its runs where they have been read already.
    """
    records = read_records(study_dir)
    attempts = read_all_attempts(study_dir, study) if known is None else known
    ids = {record.id for record in records}
    by_hand = []
    for index, name in enumerate(study.runs):
        newest = next(reversed(attempts.get(name, ())), None)
        if newest and newest.cluster == Backend.SLURM and newest.job.split("_")[0] not in ids:
            job = JobRecord(newest.job, JobKind.TRAIN, Backend.SLURM, False, (index,), newest.host)
            by_hand.append(job)
    return [*by_hand, *records]


def read_all_attempts(study_dir: Path, study: Study) -> Attempts:
    """The attempts at each run of a study, by its name, but for damaged runs, which are shown as such."""
    attempts = {}
    for name in study.runs:
        with suppress(DamagedFile):
            attempts[name] = read_attempts(study_dir / name)
    return attempts


def read_studies(runs_dir: Path) -> dict[Path, Study]:
    """The studies in a folder; of those whose files are damaged it warns. SettingsError if there is none."""
    folders = find_studies(runs_dir)
    if not folders:
        hint = "a study is a folder of runs, made by `jobs/launch.py`"
        raise SettingsError(f"no study in {runs_dir}", hint)
    studies = {}
    for folder in folders:
        try:
            study = read_study(folder)
            read_records(folder)
            studies[folder] = study
        except ToolkitError as error:
            log.warning("warning: %s", error)
    return studies


def add_record(folder: Path, record: JobRecord) -> None:
    """Remember a submitted job."""
    with _changing(folder) as records:
        records.append(record)


def note_end(folder: Path, job: str, how: EndOnPurpose) -> None:
    """Remember that local job `job` is ended on purpose; what was noted first stands."""
    with _changing(folder) as records:
        for number, record in enumerate(records):
            if record.id == job and not record.end:
                records[number] = msgspec.structs.replace(record, end=how)


@contextmanager
def _changing(folder: Path) -> Iterator[list[JobRecord]]:
    """The records of a folder, written back after the block; a launcher and `cancel` may meet here."""
    with only_holder(folder / JOBS_LOCK_FILE, JOBS_LOCK_WAIT_S) as is_ours:
        if not is_ours:
            raise ClusterError(f"another process keeps {folder / JOBS_FILE} locked", "end it, and try again")
        records = read_records(folder)
        yield records
        write_record(folder / JOBS_FILE, JobList(tuple(records)))


@contextmanager
def only_launcher(study_dir: Path) -> Iterator[None]:
    """Hold the study's lock, which the system drops if this process dies; ClusterError if it is taken."""
    with only_holder(study_dir / LAUNCH_LOCK_FILE, wait_s=0) as is_ours:
        if not is_ours:
            hint = "wait for it, or end it, then launch again"
            raise ClusterError(f"another launch of {study_dir} is at work", hint)
        yield

"""slurm/job_handle.py: a job of SLURM and one of this machine answer the same questions."""

import subprocess
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from slurm import local
from slurm.job_handle import JobHandle, handle_of
from slurm.job_records import JobRecord, add_record, read_records
from slurm.job_states import CANCELLED, GONE, UNKNOWN, Scheduler
from slurm.node.environment import Backend
from slurm.node.task import JobKind

ARRAY = JobRecord("1", JobKind.TRAIN, Backend.SLURM, True, (4, 5), "login", offset=4, name="chest-train")
HERE = JobRecord("4711", JobKind.TRAIN, Backend.LOCAL, False, (1,), "here")
NOTHING = Scheduler({}, {})


def names(handle: JobHandle, index: int) -> tuple[str, str, str, str]:
    return handle.label(), handle.label(index), handle.log_tag(index), handle.log_ending


def test_each_is_called_what_its_owner_knows_it_by() -> None:
    assert names(handle_of(ARRAY), 5) == ("job 1", "job 1_1", "1_1", ".log")
    assert names(handle_of(HERE), 1) == ("process 4711", "process 4711", "local-4711", "_log.out")
    assert (handle_of(ARRAY).is_local, handle_of(HERE).is_local) == (False, True)


def test_only_slurm_knows_what_its_jobs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Scheduler(None, None)
    assert handle_of(ARRAY).state(5, silent).state == UNKNOWN
    assert handle_of(HERE).state(1, silent).state == GONE
    cancelled = JobRecord("4711", JobKind.TRAIN, Backend.LOCAL, False, (1,), "here", end="cancelled")
    assert handle_of(cancelled).state(1, silent).state == CANCELLED
    monkeypatch.setattr(local, "is_running_here", lambda record: True)
    assert handle_of(cancelled).state(1, silent).is_running  # it saves before it ends


def test_a_whole_array_ends_at_once_and_some_of_its_tasks_one_by_one(
    fake_slurm: FakeSlurm, tmp_path: Path
) -> None:
    fake_slurm.submit("chest-train", "0-1")
    handle_of(ARRAY).end(tmp_path, [5], is_all=False)
    handle_of(ARRAY).end(tmp_path, [4], is_all=True)
    assert [call.command[-1] for call in fake_slurm.calls] == ["1_1", "1"]


def test_the_end_of_a_process_is_noted_as_wanted(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    record = JobRecord(str(process.pid), JobKind.TRAIN, Backend.LOCAL, False, (1,), "here")
    add_record(tmp_path, record)
    handle_of(record).end(tmp_path, [1], is_all=False)
    assert process.wait() < 0
    assert [handle_of(job).state(1, NOTHING).state for job in read_records(tmp_path)] == [CANCELLED]

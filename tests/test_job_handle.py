"""slurm/job_handle.py: a job of SLURM and one of this machine answer the same questions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from data_prep.errors import ClusterError
from slurm import local
from slurm.job_handle import JobHandle, handle_of, live_job, newest_job
from slurm.job_records import JobRecord, add_record, read_records
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from slurm.scheduler import Scheduler, ask_scheduler

ARRAY = JobRecord("1", JobKind.TRAIN, Backend.SLURM, True, (4, 5), "login", offset=4, name="chest-train")
HERE = JobRecord("4711", JobKind.TRAIN, Backend.LOCAL, False, (1,), "here")
SILENT = Scheduler({}, {})


@pytest.fixture
def running_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "is_running_here", lambda record: True)


def look(*records: JobRecord) -> Scheduler:
    return ask_scheduler(records)


def names(handle: JobHandle, index: int) -> tuple[str, str, str, str]:
    return handle.label(), handle.label(index), handle.log_tag(index), handle.log_ending


def test_each_is_called_what_its_owner_knows_it_by() -> None:
    assert names(handle_of(ARRAY), 5) == ("job 1", "job 1_1", "1_1", ".log")
    assert names(handle_of(HERE), 1) == ("process 4711", "process 4711", "local-4711", "_log.out")
    assert (handle_of(ARRAY).is_local, handle_of(HERE).is_local) == (False, True)


def test_an_array_task_is_what_slurm_says(fake_slurm: FakeSlurm) -> None:
    fake_slurm.submit("chest-train", "0-1")
    fake_slurm.start("1_0")
    job, scheduler = handle_of(ARRAY), look(ARRAY)
    assert [job.state(index, scheduler)[0] for index in (4, 5)] == ["RUNNING", "PENDING"]
    assert job.is_live(4, scheduler)
    fake_slurm.end("1_0", "FAILED")
    scheduler = look(ARRAY)
    assert job.state(4, scheduler)[0] == "FAILED"
    assert not job.is_live(4, scheduler)


@pytest.mark.parametrize(("end", "state"), [("", "GONE"), ("cancelled", "CANCELLED")])
def test_a_process_is_running_or_ended_as_was_noted(end: str, state: str) -> None:
    record = JobRecord("4711", JobKind.TRAIN, Backend.LOCAL, False, (1,), "elsewhere", end=end)
    assert handle_of(record).state(1, SILENT) == (state, "")
    assert not handle_of(record).is_live(1, SILENT)


@pytest.mark.usefixtures("running_here")
def test_a_process_that_is_alive_is_running() -> None:
    assert handle_of(HERE).state(1, SILENT) == ("RUNNING", "")
    assert handle_of(HERE).is_live(1, SILENT)


def test_a_job_can_be_waited_for_while_it_may_start(fake_slurm: FakeSlurm) -> None:
    first = fake_slurm.submit("other")
    fake_slurm.submit("chest-train", "0-1", after=f"afterok:{first}")
    record = JobRecord("2", JobKind.TRAIN, Backend.SLURM, True, (0, 1), "login")
    assert live_job(JobKind.TRAIN, 1, [record], look(record)) == "2_1"
    assert live_job(JobKind.TRAIN, 2, [record], look(record)) == ""
    assert live_job(JobKind.EVALUATE, 1, [record], look(record)) == ""
    fake_slurm.start(first)
    fake_slurm.end(first, "FAILED")
    assert live_job(JobKind.TRAIN, 1, [record], look(record)) == ""  # it never will
    fake_slurm.controller_down()
    with pytest.raises(ClusterError, match="squeue does not answer, so job 2 may still be running") as caught:
        live_job(JobKind.TRAIN, 1, [record], look(record))
    assert "jobs.json" in caught.value.hint


@pytest.mark.usefixtures("running_here")
def test_no_job_can_wait_for_a_process() -> None:
    with pytest.raises(ClusterError, match=r"^process 4711 is at work on this study$"):
        live_job(JobKind.TRAIN, 1, [HERE], SILENT)
    assert live_job(JobKind.TRAIN, 0, [HERE], SILENT) == ""


def test_a_process_that_has_ended_holds_nobody_up() -> None:
    assert live_job(JobKind.TRAIN, 1, [HERE], SILENT) == ""


def test_the_live_job_of_a_run_comes_before_the_newest(fake_slurm: FakeSlurm) -> None:
    records = [JobRecord(str(k), JobKind.TRAIN, Backend.SLURM, False, (0,), "login") for k in (1, 2, 3)]
    for _ in records:
        fake_slurm.submit("chest-train")
    fake_slurm.cancel("3")
    assert newest_job(JobKind.TRAIN, 0, records, look(*records)) == records[1]
    fake_slurm.cancel("1")
    fake_slurm.cancel("2")
    assert newest_job(JobKind.TRAIN, 0, records, look(*records)) == records[2]
    assert newest_job(JobKind.TRAIN, 1, records, look(*records)) is None


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
    assert [job.end for job in read_records(tmp_path)] == ["cancelled"]
    assert handle_of(*read_records(tmp_path)).state(1, SILENT)[0] == "CANCELLED"

"""slurm/job_records.py: which jobs there were, and one launcher at a time."""

from pathlib import Path

import pytest
from slurm_jobs import EVALUATE, LOCAL, TRAIN, seen
from tiny import write_attempts

from data_prep.errors import ClusterError, DamagedFile
from slurm.job_handle import live_job
from slurm.job_records import JobRecord, add_record, note_end, only_launcher, read_jobs, read_records
from slurm.node.environment import Backend
from slurm.node.task import JobKind, TrainTask
from slurm.plan import JobRequest
from vae.provenance import Attempt
from vae.study import Study

STUDY = Study("chest", ("linear-s0", "direct-s0"), "smoke")


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    for record in (TRAIN, EVALUATE):
        add_record(tmp_path, record)
    assert read_records(tmp_path) == [TRAIN, EVALUATE]


def test_ids_are_those_of_squeue_and_sacct() -> None:
    assert TRAIN.array_task(1) == "8_1"
    assert JobRecord("8", JobKind.REPORT, Backend.SLURM, False, (0,), "").array_task(0) == "8"
    request = JobRequest("train-1", JobKind.TRAIN, Path("chest"), {1001: TrainTask("a")}, offset=1001)
    assert JobRecord.of(request, "12", Backend.SLURM).array_task(1001) == "12_0"
    assert JobRecord.of(request, "4711", Backend.LOCAL).array_task(1001) == "4711"
    assert JobRecord.of(request, "12", Backend.SLURM).name == "chest-train-1"


def test_a_damaged_list_of_jobs_is_no_empty_one(tmp_path: Path) -> None:
    """Or what runs would be started twice."""
    for text in ("{", "[]", '{"other": 1}'):
        (tmp_path / "jobs.json").write_text(text)
        with pytest.raises(DamagedFile, match=r"jobs\.json is damaged: ") as caught:
            read_records(tmp_path)
        assert "see that squeue shows none of its jobs" in str(caught.value.hint)


def test_a_job_submitted_by_hand_is_known_from_provenance(tmp_path: Path) -> None:
    write_attempts(tmp_path / "linear-s0", Attempt(cluster="slurm", job="41_0", host="n1"))
    jobs, running = read_jobs(tmp_path, STUDY), seen({"41_0": ("RUNNING",)}, {})
    assert live_job(JobKind.TRAIN, 0, jobs, running) == "41_0"
    assert live_job(JobKind.TRAIN, 1, jobs, running) == ""


def test_a_job_that_we_have_submitted_is_not_one_by_hand(tmp_path: Path) -> None:
    add_record(tmp_path, TRAIN)
    write_attempts(tmp_path / "linear-s0", Attempt(cluster="slurm", job="8_0", host="n1"))
    write_attempts(tmp_path / "direct-s0", Attempt(cluster="local", job="local-7", host="here"))
    assert read_jobs(tmp_path, STUDY) == [TRAIN]


def test_a_damaged_run_hides_no_other_job(tmp_path: Path) -> None:
    add_record(tmp_path, TRAIN)
    (tmp_path / "linear-s0").mkdir()
    (tmp_path / "linear-s0" / "provenance.json").write_text("{")
    assert read_jobs(tmp_path, STUDY) == [TRAIN]


def test_the_first_end_of_a_local_job_stands(tmp_path: Path) -> None:
    add_record(tmp_path, TRAIN)
    add_record(tmp_path, LOCAL)
    note_end(tmp_path, LOCAL.id, "cancelled")
    note_end(tmp_path, LOCAL.id, "interrupted")
    assert [record.end for record in read_records(tmp_path)] == ["", "cancelled"]


def test_two_launches_of_a_study_exclude_each_other(tmp_path: Path) -> None:
    with (
        only_launcher(tmp_path),
        pytest.raises(ClusterError, match="another launch"),
        only_launcher(tmp_path),
    ):
        pass
    with only_launcher(tmp_path):
        pass

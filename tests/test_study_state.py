"""slurm/study_state.py: our files, squeue and sacct merged; no answer is unknown, never failed."""

from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm
from slurm_jobs import EVALUATE, TRAIN, seen
from tiny import finish, score, write_attempts

from data_prep.errors import ClusterError
from data_prep.files import write_text
from slurm.job_records import JobRecord, add_record
from slurm.job_states import Scheduler
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from slurm.study_state import all_states, run_state, study_facts
from vae.provenance import Attempt
from vae.run_dir import DONE_FILE, METRICS_FILE, SCORES_FILE, checkpoint_dir
from vae.run_state import RunState
from vae.study import Study

STUDY = Study("chest", ("linear-s0", "direct-s0"), "smoke")
SILENT = Scheduler(queue={}, ended={})


def state_of(run_dir: Path, scheduler: Scheduler, *records: JobRecord) -> tuple[str, str]:
    status = run_state(run_dir, STUDY, 0, list(records), scheduler)
    return status.state, status.detail


@pytest.mark.parametrize(
    ("queue", "ended", "expected"),
    [
        ({"8_0": ("PENDING", "Priority")}, {}, ("queued", "Priority")),
        ({"8_0": ("RUNNING", "None")}, {}, ("training", "")),
        ({"8_0": ("RUNNING", "None")}, {"8_0": "FAILED"}, ("training", "")),  # accounts lag behind
        ({"8_0": ("RUNNING", "None")}, None, ("training", "")),
        ({"8_1": ("RUNNING", "None")}, {"8_0": "OUT_OF_MEMORY"}, ("failed", "train OUT_OF_MEMORY")),
        ({}, {"8_0": "CANCELLED", "8_1": "COMPLETED"}, ("cancelled", "")),
        ({}, {"8_1": "COMPLETED"}, ("cancelled", "before it started")),
        ({}, {"8_0": "RUNNING"}, ("stopped", "not yet in the accounts")),  # squeue knows better
        ({}, {"8": "FAILED"}, ("stopped", "not yet in the accounts")),  # the index comes a moment later
        ({}, {"8_0": "COMPLETED"}, ("stopped", "")),
        ({}, {}, ("stopped", "not in the accounts")),
        ({}, None, ("stopped", "sacct does not answer")),
        (None, None, ("unknown", "squeue does not answer")),
        (None, {"8_0": "FAILED"}, ("unknown", "squeue does not answer")),
    ],
)
def test_state_of_a_training_job(tmp_path: Path, queue: Any, ended: Any, expected: tuple[str, str]) -> None:
    assert state_of(tmp_path, seen(queue, ended), TRAIN) == expected


def test_state_without_jobs_comes_from_files(tmp_path: Path) -> None:
    assert state_of(tmp_path, SILENT) == ("missing", "")
    write_text(tmp_path / METRICS_FILE, "")
    assert state_of(tmp_path, SILENT) == ("stopped", "")
    finish(tmp_path)
    assert state_of(tmp_path, SILENT, TRAIN) == ("trained", "")
    score(tmp_path)
    assert state_of(tmp_path, Scheduler(None, None), TRAIN) == ("done", "")


def test_scores_of_other_weights_or_another_extractor_do_not_count(tmp_path: Path) -> None:
    finish(tmp_path)
    for changes in ({"checkpoint_sha256": "cd"}, {"extractor": "inception"}):
        score(tmp_path, **changes)
        assert state_of(tmp_path, SILENT) == ("trained", "")


def test_state_of_an_evaluation(tmp_path: Path) -> None:
    finish(tmp_path)
    waiting = seen({"9_0": ("PENDING", "Dependency")}, {})
    assert state_of(tmp_path, waiting, TRAIN, EVALUATE) == ("trained", "Dependency")
    running = seen({"9_0": ("RUNNING",)}, {})
    assert state_of(tmp_path, running, EVALUATE) == ("scoring", "")
    assert state_of(tmp_path, seen({}, {"9_0": "TIMEOUT"}), EVALUATE) == ("failed", "evaluate TIMEOUT")
    removed = seen({}, {"9_0": "COMPLETED"})  # the job has ended well, but its scores are gone
    assert state_of(tmp_path, removed, EVALUATE) == ("trained", "")


def test_the_newest_job_counts(tmp_path: Path) -> None:
    again = JobRecord("12", JobKind.TRAIN, Backend.SLURM, True, (0,), "login")
    scheduler = seen({"12_0": ("RUNNING",)}, {"8_0": "FAILED"})
    assert state_of(tmp_path, scheduler, TRAIN, again) == ("training", "")


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("cancelled", ("cancelled", "saved at step 40")),
        ("interrupted", ("stopped", "interrupted, saved at step 40")),
        ("", ("stopped", "")),
    ],
)
def test_how_a_local_job_was_ended_is_remembered(tmp_path: Path, end: Any, expected: tuple[str, str]) -> None:
    checkpoint_dir(tmp_path, 40).mkdir(parents=True)
    local = JobRecord("1", JobKind.TRAIN, Backend.LOCAL, False, (0,), "another-machine", end=end)
    assert state_of(tmp_path, SILENT, local) == expected


def test_only_scores_that_are_numbers_are_shown_with_their_label(tmp_path: Path) -> None:
    finish(tmp_path)
    score(tmp_path)
    status = run_state(tmp_path, STUDY, 0, [], SILENT)
    assert (status.scores, status.label) == ({"ssim": 0.5}, "smoke, not comparable")


def test_a_damaged_run_says_what_to_do_and_takes_no_other_run_down(
    tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    finish(tmp_path / "linear-s0")
    (tmp_path / "linear-s0" / SCORES_FILE).write_text("[1")
    write_attempts(tmp_path / "direct-s0", Attempt(), Attempt())
    damaged, whole = all_states({tmp_path: STUDY})[tmp_path]
    assert damaged.state is RunState.DAMAGED
    assert damaged.detail.startswith(f"{tmp_path}/linear-s0/{SCORES_FILE} is damaged: ")
    assert damaged.detail.endswith("; remove it, and score the run again: python jobs/evaluate.py STUDY/RUN")
    assert (whole.state, whole.restarts) == (RunState.MISSING, 1)


def test_slurm_is_asked_once_about_several_studies(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        job = fake_slurm.submit(f"{folder.name}-train", array="0-1")
        fake_slurm.start(f"{job}_0")
        fake_slurm.end(f"{job}_0", "OUT_OF_MEMORY")
        add_record(folder, JobRecord(job, JobKind.TRAIN, Backend.SLURM, True, (0, 1), "login"))
    states = all_states(dict.fromkeys(folders, STUDY))
    assert [[str(run.state) for run in runs] for runs in states.values()] == [["failed", "queued"]] * 2
    assert [call.command[0] for call in fake_slurm.calls] == ["squeue", "sacct"]


def test_a_finished_study_needs_no_slurm_that_remembers_it(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.uninstall()
    study_dir, data_dir = tmp_path / "chest", tmp_path / "shards"
    report = JobRecord("10", JobKind.REPORT, Backend.SLURM, False, (0,), "login")
    for record in (TRAIN, EVALUATE, report):
        add_record(study_dir, record)
    add_record(data_dir, JobRecord("7", JobKind.FINALIZE, Backend.SLURM, False, (0,), "login"))
    for name in STUDY.runs:
        finish(study_dir / name)
        score(study_dir / name)
    (study_dir / "report.html").write_text("")
    facts = study_facts(study_dir, STUDY, STUDY.runs, data_dir, num_shards=None)
    assert all(run.is_trained and run.is_scored for run in facts.runs)
    assert facts.any_job() == ""
    (study_dir / "linear-s0" / SCORES_FILE).unlink()
    with pytest.raises(ClusterError, match="job 9 may still be running"):
        study_facts(study_dir, STUDY, STUDY.runs, data_dir, num_shards=None)


def test_what_is_queued_is_a_fact_for_the_next_launch(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    study_dir, data_dir = tmp_path / "chest", tmp_path / "shards"
    pack = fake_slurm.submit("shards-finalize")
    train = fake_slurm.submit("chest-train", array="0-1", after=f"afterok:{pack}")
    report = fake_slurm.submit("chest-report", after=f"afterany:{train}")
    add_record(data_dir, JobRecord(pack, JobKind.FINALIZE, Backend.SLURM, False, (0,), "login"))
    add_record(study_dir, JobRecord(train, JobKind.TRAIN, Backend.SLURM, True, (0, 1), "login"))
    add_record(study_dir, JobRecord(report, JobKind.REPORT, Backend.SLURM, False, (0,), "login"))
    finish(study_dir / "linear-s0")
    facts = study_facts(study_dir, STUDY, ("linear-s0", "direct-s0"), data_dir, num_shards=4)
    assert [run.train_job for run in facts.runs] == ["", f"{train}_1"]
    assert (facts.pack_job, facts.report_job, facts.num_shards) == (pack, report, 4)
    assert fake_slurm.asked("sacct") == 0  # how jobs ended does not matter
    assert not (study_dir / "direct-s0" / DONE_FILE).exists()

"""slurm/state.py: our files, squeue and sacct merged; no answer is unknown, never failed."""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import ClusterError, SettingsError
from data_prep.files import write_json, write_text
from slurm.job_records import JobRecord, add_record, only_launcher, read_jobs, read_records
from slurm.local import is_running_here
from slurm.scheduler import Scheduler, ask_scheduler, live_job
from slurm.state import run_state, study_facts
from vae.metrics import progress
from vae.study import (
    DONE_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    SCORES_FILE,
    Study,
    find_study,
    has_report,
    prepare_study,
)

STUDY = Study("chest", ("linear-s0", "direct-s0"), "smoke")
TRAIN = JobRecord("8", "train", "slurm", True, (0, 1), "login")
EVALUATE = JobRecord("9", "evaluate", "slurm", True, (0, 1), "login")
SILENT = Scheduler(queue={}, ended={})


def state_of(run_dir: Path, scheduler: Scheduler, *records: JobRecord) -> tuple[str, str]:
    found = run_state(run_dir, STUDY, 0, list(records), scheduler)
    return found.state, found.detail


def finish(run_dir: Path) -> None:
    write_json(run_dir / DONE_FILE, {"step": 3, "epoch": 1, "weights_sha256": "ab"})


def score(run_dir: Path, **changes: Any) -> None:
    card = {"checkpoint_sha256": "ab", "extractor": "smoke", "label": "smoke, not comparable"}
    values = {"ssim": {"value": 0.5}, "gfid_paper": {"value": None, "reason": "cannot sample"}}
    write_json(run_dir / SCORES_FILE, {**card, "scores": values, **changes})


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
    assert state_of(tmp_path, Scheduler(queue, ended), TRAIN) == expected


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
    waiting = Scheduler({"9_0": ("PENDING", "Dependency")}, {})
    assert state_of(tmp_path, waiting, TRAIN, EVALUATE) == ("trained", "Dependency")
    assert state_of(tmp_path, Scheduler({"9_0": ("RUNNING", "None")}, {}), EVALUATE) == ("scoring", "")
    assert state_of(tmp_path, Scheduler({}, {"9_0": "TIMEOUT"}), EVALUATE) == ("failed", "evaluate TIMEOUT")
    removed = Scheduler({}, {"9_0": "COMPLETED"})  # the job has ended well, but its scores are gone
    assert state_of(tmp_path, removed, EVALUATE) == ("trained", "")


def test_the_newest_job_counts(tmp_path: Path) -> None:
    again = JobRecord("12", "train", "slurm", True, (0,), "login")
    scheduler = Scheduler({"12_0": ("RUNNING", "None")}, {"8_0": "FAILED"})
    assert state_of(tmp_path, scheduler, TRAIN, again) == ("training", "")


def test_only_scores_that_are_numbers_are_shown_with_their_label(tmp_path: Path) -> None:
    finish(tmp_path)
    score(tmp_path)
    found = run_state(tmp_path, STUDY, 0, [], SILENT)
    assert (found.scores, found.label) == ({"ssim": 0.5}, "smoke, not comparable")


def test_queued_and_running_jobs_are_live() -> None:
    scheduler = Scheduler({"8_1": ("PENDING", "Priority")}, {})
    assert live_job("train", 1, [TRAIN], scheduler) == "8_1"
    assert live_job("train", 0, [TRAIN], scheduler) == ""
    assert live_job("evaluate", 1, [TRAIN], scheduler) == ""


def test_nothing_is_submitted_while_nobody_knows_what_runs() -> None:
    with pytest.raises(ClusterError, match="job 8 may still be running"):
        live_job("train", 0, [TRAIN], Scheduler(None, None))


def test_a_finished_study_needs_no_slurm_that_remembers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    study_dir, data_dir = tmp_path / "chest", tmp_path / "shards"
    report = JobRecord("10", "report", "slurm", False, (0,), "login")
    for record in (TRAIN, EVALUATE, report):
        add_record(study_dir, record)
    add_record(data_dir, JobRecord("7", "finalize", "slurm", False, (0,), "login"))
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


def test_a_local_process_at_work_blocks_a_second_launch() -> None:
    own = JobRecord(str(os.getpid()), "train", "local", False, (0,), socket.gethostname())
    assert not is_running_here(own)  # this process is alive, but it is no submitit job
    assert live_job("train", 0, [own], SILENT) == ""
    elsewhere = JobRecord("1", "train", "local", False, (0,), "another-machine")
    assert live_job("train", 0, [elsewhere], SILENT) == ""


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    for record in (TRAIN, EVALUATE):
        add_record(tmp_path, record)
    assert read_records(tmp_path) == [TRAIN, EVALUATE]
    assert (TRAIN.array_task(1), JobRecord("8", "report", "slurm", False, (0,), "").array_task(0)) == (
        "8_1",
        "8",
    )


def test_a_damaged_list_of_jobs_is_no_empty_one(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"other": 1}'):
        (tmp_path / "jobs.json").write_text(text)
        with pytest.raises(ClusterError, match=r"jobs\.json is damaged, so nobody knows which jobs"):
            read_records(tmp_path)


def test_a_job_submitted_by_hand_is_known_from_provenance(tmp_path: Path) -> None:
    attempt = {"cluster": "slurm", "job": "41_0", "host": "n1"}
    write_json(tmp_path / "linear-s0" / PROVENANCE_FILE, {"attempts": [attempt]})
    jobs = read_jobs(tmp_path, STUDY)
    assert live_job("train", 0, jobs, Scheduler({"41_0": ("RUNNING", "None")}, {})) == "41_0"
    assert live_job("train", 1, jobs, Scheduler({"41_0": ("RUNNING", "None")}, {})) == ""


def test_without_slurm_programs_the_scheduler_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert shutil.which("squeue") is None
    assert ask_scheduler([TRAIN]) == Scheduler(None, None)
    assert ask_scheduler([]) == SILENT


def test_what_needs_a_job_that_never_starts_never_starts_either() -> None:
    queue = dict.fromkeys(("3", "4_0", "4_1", "5_0", "5_1", "6", "7_0"), ("PENDING", "Dependency"))
    queue["3"] = ("PENDING", "DependencyNeverSatisfied")
    needs = {"3": "afterok:2_*(failed)", "4_0": "afterok:3(unfulfilled)", "4_1": "afterok:3(unfulfilled)"}
    needs |= {f"5_{index}": "aftercorr:4_*(unfulfilled)" for index in (0, 1)}
    needs |= {"6": "afterany:5_*(unfulfilled)", "7_0": "(null)"}
    assert Scheduler(queue, {}, needs=needs).never_satisfiable() == {"3", "4_0", "4_1", "5_0", "5_1"}
    # element by element
    queue["4_0"], queue["3"] = ("PENDING", "DependencyNeverSatisfied"), ("RUNNING", "None")
    assert Scheduler(queue, {}, needs=needs).never_satisfiable() == {"4_0", "5_0"}


def test_what_waits_for_a_job_that_has_just_ended_is_undecided() -> None:
    queue = dict.fromkeys(("5_0", "5_1", "6", "7", "8_0", "9"), ("PENDING", "Dependency"))
    queue |= {"4_1": ("RUNNING", "None"), "5_2": ("PENDING", "JobHeldUser"), "5_3": ("RUNNING", "None")}
    needs = {f"5_{index}": "aftercorr:4_*(unfulfilled)" for index in (0, 1, 2)} | {"5_3": "(null)"}
    needs |= {"6": "afterok:4_*(unfulfilled)", "7": "afterok:3(unfulfilled)"}
    needs |= {"8_0": "aftercorr:7(unfulfilled)", "9": "afterany:3(unfulfilled)"}
    assert Scheduler(queue, {}, needs=needs).in_transition() == {"5_0", "7"}
    assert Scheduler(None, None, needs=needs).in_transition() == set()


def test_a_job_of_another_name_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids start anew on a new controller; what its owner wants squeue to show a person does not count."""
    programs = {
        "squeue": 'echo "8_0|RUNNING|other|None|N/A|"; echo "9_0|PENDING|chest-evaluate|$SQUEUE_STATES|N/A|"',
        "sacct": 'echo "8_0|FAILED|chest-train|1:0"; echo "9_1|FAILED|other|1:0"',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    records = [replace(TRAIN, name="chest-train"), replace(EVALUATE, name="chest-evaluate")]
    found = ask_scheduler(records)
    assert found.queue == {"9_0": ("PENDING", "")}
    assert found.ended == {"8_0": "FAILED"}
    assert ask_scheduler(records, with_accounts=False).ended is None


def test_two_launches_of_a_study_exclude_each_other(tmp_path: Path) -> None:
    with (
        only_launcher(tmp_path),
        pytest.raises(ClusterError, match="another launch"),
        only_launcher(tmp_path),
    ):
        pass
    with only_launcher(tmp_path):
        pass


def metrics(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_progress_and_time_left_on_paper(tmp_path: Path) -> None:
    start = {"kind": "start", "step": 0, "total_steps": 1000, "steps_per_epoch": 100, "time": 0}
    steps = [
        {"kind": "step", "step": step, "loss": 5.0, "images_per_s": 64.0, "time": step / 2}
        for step in (240, 250)
    ]
    write_text(tmp_path / METRICS_FILE, metrics(start, *steps) + '{"kind": "st')
    assert progress(tmp_path) == {
        "step": 250,
        "total_steps": 1000,
        "epoch": 2.5,
        "loss": 5.0,
        "images_per_s": 64.0,
        "eta_s": 375.0,  # 750 steps at half a second
    }


def test_time_left_does_not_count_the_wait_before_a_run_went_on(tmp_path: Path) -> None:
    start = {"kind": "start", "step": 0, "total_steps": 1000, "steps_per_epoch": 100, "time": 0}
    first = {"kind": "step", "step": 100, "loss": 5.0, "time": 1000}
    again = {**start, "step": 100, "time": 8200}
    later = [{"kind": "step", "step": step, "loss": 5.0, "time": 8200 + step} for step in (110, 120)]
    write_text(tmp_path / METRICS_FILE, metrics(start, first, again, later[0]))
    assert progress(tmp_path)["eta_s"] is None
    write_text(tmp_path / METRICS_FILE, metrics(start, first, again, *later))
    assert progress(tmp_path)["eta_s"] == 880


def test_progress_of_a_long_run_reads_only_its_ends(tmp_path: Path) -> None:
    start = {"kind": "start", "step": 0, "total_steps": 20_000, "steps_per_epoch": 100, "time": 0}
    lines = [{"kind": "step", "step": n, "loss": 1.0, "time": n} for n in range(1, 10_001)]
    write_text(tmp_path / METRICS_FILE, metrics(start, *lines))
    found = progress(tmp_path)
    assert (found["step"], found["total_steps"], found["eta_s"]) == (10_000, 20_000, 10_000.0)


def test_a_report_older_than_the_scores_is_out_of_date(tmp_path: Path) -> None:
    assert not has_report(tmp_path, STUDY)
    finish(tmp_path / "linear-s0")
    report = tmp_path / "report.html"
    report.write_text("")
    assert has_report(tmp_path, STUDY)
    old = (tmp_path / "linear-s0" / DONE_FILE).stat().st_mtime - 1
    os.utime(report, (old, old))
    assert not has_report(tmp_path, STUDY)


def test_a_study_is_found_by_name_and_by_folder(tmp_path: Path) -> None:
    prepare_study(tmp_path / "chest", STUDY)
    assert find_study("chest", tmp_path) == tmp_path / "chest"
    assert find_study(str(tmp_path / "chest"), Path("elsewhere")) == tmp_path / "chest"
    with pytest.raises(SettingsError, match=r"no study 'cest'\. Known in .*: chest\."):
        find_study("cest", tmp_path)

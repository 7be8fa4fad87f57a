"""A study that older code has written (golden/old_study) shows, resumes, scores and reports.

Its run linear-s0 is trained and scored, direct-s0 was interrupted at step 104 of 500.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import REPOSITORY

from slurm.job_records import read_records
from slurm.study_state import study_states
from vae.events import by_attempt, read_events
from vae.goodput import goodput
from vae.metrics import StepLine, read_metrics
from vae.provenance import read_attempts, read_provenance
from vae.report.report import write_report
from vae.run_state import RunState
from vae.scoring.evaluate import evaluate
from vae.study import read_launches, read_study
from vae.training.checkpoint import load_trained
from vae.training.trainer import train

OLD = REPOSITORY / "tests" / "golden" / "old_study"


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the study whose data lie where they are now."""
    folder = tmp_path_factory.mktemp("old")
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    for path in folder.glob("runs/old/*/run.yaml"):
        path.write_text(path.read_text().replace("/data/shards", str(folder / "shards")))
    return folder / "runs" / "old"


def test_it_shows_as_it_did(study_dir: Path) -> None:
    linear, direct = study_states(study_dir, read_study(study_dir))
    assert (linear.state, direct.state) == (RunState.DONE, RunState.STOPPED)
    assert (linear.progress.step, direct.progress.step, direct.progress.total_steps) == (500, 104, 500)
    assert direct.detail == "interrupted, saved at step 104"
    assert linear.scores["psnr"] == pytest.approx(9.58, abs=0.01)
    assert linear.label == "smoke, not comparable"
    assert (linear.goodput, direct.goodput) == pytest.approx((0.58, 0.22), abs=0.01)
    assert [record.end for record in read_records(study_dir)] == ["", "", "", "interrupted"]
    assert [launch.runs for launch in read_launches(study_dir)] == [["linear-s0"], ["direct-s0"]]
    assert read_provenance(study_dir / "linear-s0").snapshot == "6413cb3bd248"


def test_it_resumes_scores_and_reports(study_dir: Path) -> None:
    run_dir, study = study_dir / "direct-s0", read_study(study_dir)
    before = [line for line in read_metrics(run_dir) if isinstance(line, StepLine)]
    torch.set_num_threads(1)
    assert train(run_dir) is True
    steps = [line for line in read_metrics(run_dir) if isinstance(line, StepLine)]
    assert (steps[: len(before)], steps[-1].step) == (before, 500)
    assert [attempt.from_step for attempt in read_attempts(run_dir)] == [0, 104]
    (course,) = by_attempt(read_events(run_dir))  # the older code wrote no events
    assert (course.started.step, course.started.reached_step, course.events[-1].step) == (104, 104, 500)
    assert 0 < (goodput(read_attempts(run_dir), read_metrics(run_dir)) or 0) < 1

    _, done = load_trained(run_dir)
    evaluate(run_dir, study)
    assert json.loads((run_dir / "scores.json").read_text())["checkpoint_sha256"] == done.weights_sha256
    assert [run.state for run in study_states(study_dir, study)] == [RunState.DONE, RunState.DONE]
    text = write_report(study_dir).read_text()
    assert "linear-s0" in text
    assert "direct-s0" in text


def test_the_old_scores_are_made_again_to_the_digit(study_dir: Path) -> None:
    """From its weights and data: the same protocol, the same numbers. Floors are other draws now."""
    old = json.loads((OLD / "runs" / "old" / "linear-s0" / "scores.json").read_text())
    evaluate(study_dir / "linear-s0", read_study(study_dir))
    new = json.loads((study_dir / "linear-s0" / "scores.json").read_text())
    assert new.keys() == {*old, "extent"}
    assert new["scores"].keys() > old["scores"].keys()
    for name, score in old["scores"].items():
        again = new["scores"][name]
        if not name.startswith("floor_"):
            assert again["value"] == pytest.approx(score["value"], rel=1e-4), name
        assert again["unit"] == score["unit"]
        for fact in ("checkpoint_sha256", "data_fingerprint", "extractor_sha256", "layer", "split"):
            assert again["protocol"].get(fact) == score["protocol"].get(fact), (name, fact)

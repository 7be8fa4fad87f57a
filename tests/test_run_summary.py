"""The state of a run as its files tell it: the same word in the report and in `status`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.study_state import study_states
from vae.report.run_summary import RunSummary, read_summary
from vae.run_dir import DONE_FILE, EVENTS_FILE, METRICS_FILE, PROVENANCE_FILE, RUN_FILE, SCORES_FILE
from vae.run_state import RunState
from vae.study import Study

Change = Callable[[Path], object]


def without(*names: str) -> Change:
    return lambda run_dir: [(run_dir / name).unlink() for name in names]


def damaged(name: str, content: str = "{\n") -> Change:
    return lambda run_dir: (run_dir / name).write_text(content)


def with_other_weights(run_dir: Path) -> None:
    done = json.loads((run_dir / DONE_FILE).read_text())
    (run_dir / DONE_FILE).write_text(json.dumps({**done, "weights_sha256": "0" * 64}))


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        (without(), RunState.DONE, ""),
        (without(SCORES_FILE), RunState.TRAINED, "to score it: python jobs/evaluate.py {run_dir}"),
        (with_other_weights, RunState.TRAINED, "its scores belong to other weights; score it again"),
        (without(DONE_FILE), RunState.STOPPED, "training is at step 24 of 24"),
        (without(DONE_FILE, METRICS_FILE), RunState.MISSING, "training has not begun"),
        (shutil.rmtree, RunState.MISSING, "it was never started"),
        (damaged(SCORES_FILE), RunState.DAMAGED, "{run_dir}/scores.json is damaged: "),
        (damaged(DONE_FILE, ""), RunState.DAMAGED, "{run_dir}/done.json is damaged: "),
        (damaged(METRICS_FILE), RunState.DAMAGED, "{run_dir}/metrics.jsonl, line 1, is damaged: "),
        (damaged(PROVENANCE_FILE, "[]"), RunState.DAMAGED, "{run_dir}/provenance.json is damaged: "),
    ],
)
def test_a_state_is_the_same_in_the_report_and_in_status(
    study_dir: Path, change: Change, state: RunState, reason: str
) -> None:
    run_dir = study_dir / "linear-s0"
    change(run_dir)
    summary = read_summary(run_dir)
    assert summary.state is state
    assert summary.reason.startswith(reason.format(run_dir=run_dir))
    (status,) = study_states(study_dir, Study("tiny", ("linear-s0",), extractor="smoke"))
    assert status.state is state


@pytest.mark.parametrize("name", [METRICS_FILE, EVENTS_FILE, PROVENANCE_FILE])
def test_a_damaged_file_takes_no_score_down_with_it(study_dir: Path, name: str) -> None:
    summary = changed(study_dir, damaged(name))
    assert (summary.state, summary.value("ssim") is None) == (RunState.DAMAGED, False)
    assert "; " in summary.reason  # what to do


@pytest.mark.parametrize("change", [damaged(RUN_FILE), damaged(DONE_FILE), with_other_weights])
def test_scores_of_unknown_settings_or_weights_are_not_shown(study_dir: Path, change: Change) -> None:
    summary = changed(study_dir, change)
    assert summary.scores is None
    assert (summary.label, summary.value("ssim")) == ("", None)


def changed(study_dir: Path, change: Change) -> RunSummary:
    change(study_dir / "linear-s0")
    return read_summary(study_dir / "linear-s0")

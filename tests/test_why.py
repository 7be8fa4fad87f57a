"""jobs/why.py: one sentence for each run that is not done."""

from pathlib import Path

import pytest
from doors import run_door
from fake_slurm import FakeSlurm
from slurm_jobs import TRAIN
from tiny import finish, score

from slurm.job_records import add_record
from vae.study import Study, prepare_study


@pytest.fixture
def study_dir(tmp_path: Path, fake_slurm: FakeSlurm) -> Path:
    """A run that is done, and one whose job squeue does not show and sacct does not know."""
    prepare_study(tmp_path / "chest", Study("chest", ("linear-s0", "direct-s0"), "smoke"))
    add_record(tmp_path / "chest", TRAIN)
    finish(tmp_path / "chest" / "linear-s0")
    score(tmp_path / "chest" / "linear-s0")
    return tmp_path / "chest"


def test_runs_that_are_done_are_only_counted(study_dir: Path) -> None:
    shown = run_door("why", "chest", "--runs-dir", study_dir.parent)
    assert shown.returncode == 0, shown.stderr
    first, last = shown.stdout.splitlines()
    assert first.startswith("direct-s0: the training job 8_1 ended before the run was complete, and it is")
    assert last == "1 of 2 runs are done"


def test_a_run_that_is_asked_about_is_explained_even_if_it_is_done(study_dir: Path) -> None:
    shown = run_door("why", study_dir / "linear-s0")
    assert shown.stdout == "linear-s0: is trained and scored; nothing to do.\n"


def test_slurm_is_asked_once(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    run_door("why", study_dir)
    assert [call.command[0] for call in fake_slurm.calls] == ["squeue", "sacct"]


def test_without_a_study_all_are_explained_by_one_look_at_slurm(
    study_dir: Path, fake_slurm: FakeSlurm
) -> None:
    prepare_study(study_dir.parent / "lungs", Study("lungs", ("linear-s0",), "smoke"))
    (study_dir.parent / "odd").mkdir()
    (study_dir.parent / "odd" / "study.yaml").write_text("runs: 7")
    shown = run_door("why", "--runs-dir", study_dir.parent)
    assert shown.returncode == 0, shown.stderr
    first, second, last = shown.stdout.splitlines()
    assert first.startswith("chest/direct-s0: the training job 8_1 ended before the run was complete")
    assert second == "lungs/linear-s0: has not been launched yet; launch it."
    assert last == "1 of 3 runs are done"
    assert "odd" in shown.stderr
    assert [call.command[0] for call in fake_slurm.calls] == ["squeue", "sacct"]

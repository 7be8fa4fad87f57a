"""slurm/sbatch.py: the text of a batch script, compared whole with tests/golden."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import SettingsError
from slurm.plan import Resources, RunFacts, StudyFacts, decide
from slurm.profile import ClusterProfile, read_profile
from slurm.sbatch import index_list, sbatch_flag, sbatch_text

GOLDEN = Path(__file__).parent / "golden"
CODE = Path("/shared/cxr-vae")
STUDY = Path("/shared/runs/chest")
DATA = Path("/shared/shards/chest")
LINEAR, DIRECT = RunFacts("linear-s0", 0), RunFacts("direct-s0", 1)
NEW = StudyFacts(STUDY, (LINEAR, DIRECT), DATA, num_shards=9)
PACKED = replace(NEW, num_shards=None)


def test_a_single_run_is_still_an_array() -> None:
    train = decide(replace(NEW, runs=(DIRECT,), num_shards=None), Resources(), 4)[0]
    assert "#SBATCH --array=1\n" in sbatch_text(train, ClusterProfile(), CODE)


@pytest.mark.parametrize("key", ["pack", "finalize", "train", "evaluate", "report"])
def test_script_is_the_golden_one(key: str) -> None:
    (request,) = [r for r in decide(NEW, Resources(8, 2), pack_jobs=4) if r.key == key]
    text = sbatch_text(request, replace(read_profile("example"), python="/shared/venv/bin/python"), CODE)
    path = GOLDEN / f"{key}.sbatch"
    if os.environ.get("CXR_ACCEPT") == "1":
        path.write_text(text)
    assert text == path.read_text(), "if that is meant: CXR_ACCEPT=1 pytest tests/test_sbatch.py"


def test_script_says_what_the_site_wants_said() -> None:
    train = decide(PACKED, Resources(2), 4)[0]
    profile = ClusterProfile(
        gpu_flag="gres",
        gpu_type="h100",
        qos="long",
        constraint="a&b",
        container="apptainer exec --nv x.sif",
        python="python3",
        drop=("kill-on-invalid-dep", "open-mode"),
        rename={"time": "time-min"},
        extra={"reservation": "course", "exclusive": ""},
    )
    lines = sbatch_text(train, profile, CODE).splitlines()
    for line in (
        "--gres=gpu:h100:2",
        "--qos=long",
        "--constraint=a&b",
        "--reservation=course",
        "--exclusive",
        "--time-min=1440",
    ):
        assert f"#SBATCH {line}" in lines
    assert not [
        line for line in lines if "#SBATCH" in line and ("invalid-dep" in line or "open-mode" in line)
    ]
    runner = "apptainer exec --nv x.sif python3 -u -m submitit.core._submit /shared/runs/chest/jobs"
    assert f"    {runner} &" in lines


def test_script_never_asks_for_what_breaks_gpu_numbering_or_accounting() -> None:
    for request in decide(NEW, Resources(2), 4):
        text = sbatch_text(request, ClusterProfile(), CODE)
        assert "gpus-per-task" not in text
        assert "wckey" not in text


def test_paths_with_spaces_are_quoted_and_others_refused() -> None:
    request = decide(replace(NEW, study_dir=Path("/my runs/x"), num_shards=None), Resources(), 4)[0]
    text = sbatch_text(request, ClusterProfile(python="/my env/python"), Path("/my code"))
    assert '#SBATCH --output="/my runs/x/jobs/%A_%a.log"' in text
    assert "'/my env/python' -u -m submitit.core._submit '/my runs/x/jobs'" in text
    for bad in ("/a\nb", '/a"b', "/a'b", "/a%j", "/a$HOME", "/a\\b", "/a#1"):
        request = decide(replace(NEW, study_dir=Path(bad), num_shards=None), Resources(), 4)[0]
        with pytest.raises(SettingsError, match="misread"):
            sbatch_text(request, ClusterProfile(), CODE)


def test_index_lists_are_short() -> None:
    assert index_list([0]) == "0"
    assert index_list([3, 1, 0, 2, 7, 9, 10]) == "0-3,7,9-10"
    assert sbatch_flag("requeue", "") == "#SBATCH --requeue"


def test_at_most_so_many_array_tasks_run_at_once() -> None:
    train = decide(PACKED, Resources(), pack_jobs=4)[0]
    text = sbatch_text(replace(train, max_parallel=1), ClusterProfile(), CODE)
    assert "#SBATCH --array=0-1%1\n" in text
    assert text.replace("%1\n", "\n", 1) == sbatch_text(train, ClusterProfile(), CODE)


@pytest.mark.parametrize(
    ("stop_s", "expected"), [(0.0, 180), (0.5, 120), (20.0, 120), (30.5, 152), (200.0, 660)]
)
def test_the_stop_signal_comes_as_early_as_measured_saves_need_it(stop_s: float, expected: int) -> None:
    """Nothing measured: 180 s; else three times the slowest stop and SLURM's slack of a minute."""
    train = decide(replace(PACKED, runs=(replace(LINEAR, stop_s=stop_s), DIRECT)), Resources(), 4)[0]
    assert f"#SBATCH --signal=USR2@{expected}\n" in sbatch_text(train, ClusterProfile(), CODE)


def test_a_limit_that_leaves_no_time_to_save_is_refused() -> None:
    train, evaluate, report = decide(replace(PACKED, runs=(replace(LINEAR, stop_s=100.0),)), Resources(), 4)
    short = ClusterProfile(train_limit_min=23, evaluate_limit_min=2, report_limit_min=1)
    with pytest.raises(
        SettingsError, match=r"train_limit_min = 23 leaves too little .* 360 s before"
    ) as caught:
        sbatch_text(train, short, CODE)
    assert caught.value.hint.startswith("allow at least 24 minutes")
    sbatch_text(train, replace(short, train_limit_min=24), CODE)
    # these have nothing to save
    assert "#SBATCH --signal=USR2@30\n" in sbatch_text(evaluate, short, CODE)
    assert "#SBATCH --signal=USR2@15\n" in sbatch_text(report, short, CODE)
    # what the profile says goes, within reason
    early = replace(short, train_limit_min=120, warning_s=1800)
    assert "#SBATCH --signal=USR2@1800\n" in sbatch_text(train, early, CODE)
    assert "#SBATCH --signal=USR2@30\n" in sbatch_text(evaluate, early, CODE)

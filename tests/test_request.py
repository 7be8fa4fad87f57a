"""slurm/request.py: what is submitted, decided from facts alone; scripts are compared with tests/golden."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import SettingsError
from slurm.node.task import EvaluateTask, PackTask, TrainTask
from slurm.plan import JobRequest, Resources, RunFacts, StudyFacts, decide, with_cap
from slurm.profile import ClusterProfile, read_profile
from slurm.sbatch import array_spec, describe, index_list, sbatch_flag, sbatch_text

GOLDEN = Path(__file__).parent / "golden"
STUDY = Path("/shared/runs/chest")
DATA = Path("/shared/shards/chest")
CODE = Path("/shared/cxr-vae")
LINEAR, DIRECT = RunFacts("linear-s0", 0), RunFacts("direct-s0", 1)
NEW = StudyFacts(STUDY, (LINEAR, DIRECT), DATA, is_packed=False, num_shards=9)


def keys(requests: tuple[JobRequest, ...]) -> dict[str, tuple[str, ...]]:
    return {request.key: request.after for request in requests}


def test_a_new_study_is_packed_trained_scored_and_reported_in_order() -> None:
    requests = decide(NEW, Resources(4), pack_jobs=4)
    assert keys(requests) == {
        "pack": (),
        "finalize": ("afterok:pack",),
        "train": ("afterok:finalize",),
        "evaluate": ("aftercorr:train",),
        "report": ("afterany:evaluate",),
    }
    pack, _, train, evaluate, _ = requests
    assert pack.tasks == {i: PackTask(str(DATA), i, 4) for i in range(4)}
    assert train.tasks == {0: TrainTask(f"{STUDY}/linear-s0"), 1: TrainTask(f"{STUDY}/direct-s0")}
    assert evaluate.tasks == {0: EvaluateTask(f"{STUDY}/linear-s0"), 1: EvaluateTask(f"{STUDY}/direct-s0")}


def test_there_are_no_more_packing_jobs_than_shards() -> None:
    assert len(decide(replace(NEW, num_shards=2), Resources(), pack_jobs=4)[0].tasks) == 2


def test_packed_data_are_not_packed_again() -> None:
    requests = decide(replace(NEW, is_packed=True), Resources(), pack_jobs=4)
    assert keys(requests) == {
        "train": (),
        "evaluate": ("aftercorr:train",),
        "report": ("afterany:evaluate",),
    }


def test_training_waits_for_packing_that_another_launch_has_queued() -> None:
    requests = decide(replace(NEW, pack_job="70"), Resources(), pack_jobs=4)
    assert keys(requests)["train"] == ("afterok:70",)
    assert "pack" not in keys(requests)


def test_nothing_is_asked_for_when_all_is_there() -> None:
    done = tuple(replace(run, is_trained=True, is_scored=True) for run in (LINEAR, DIRECT))
    assert decide(StudyFacts(STUDY, done, DATA, has_report=True), Resources(), 4) == ()


def test_nothing_is_asked_for_twice_while_it_is_queued_or_running() -> None:
    busy = tuple(replace(r, train_job=f"8_{r.index}", evaluate_job=f"9_{r.index}") for r in (LINEAR, DIRECT))
    assert decide(StudyFacts(STUDY, busy, DATA, report_job="10"), Resources(), 4) == ()


def test_work_of_other_jobs_is_noticed() -> None:
    assert replace(NEW, pack_job="7").any_job() == "7"
    assert replace(NEW, runs=(LINEAR, replace(DIRECT, evaluate_job="9_1"))).any_job() == "9_1"
    assert NEW.any_job() == ""


def test_deleted_scores_are_made_again_and_reported() -> None:
    done = replace(LINEAR, is_trained=True, is_scored=True)
    unscored = replace(DIRECT, is_trained=True)
    requests = decide(StudyFacts(STUDY, (done, unscored), DATA, has_report=True), Resources(), 4)
    assert keys(requests) == {"evaluate": (), "report": ("afterany:evaluate",)}
    assert list(requests[0].tasks) == [1]


def test_a_deleted_report_is_written_again() -> None:
    done = replace(LINEAR, is_trained=True, is_scored=True)
    assert keys(decide(StudyFacts(STUDY, (done,), DATA), Resources(), 4)) == {"report": ()}


def test_each_evaluation_waits_for_the_same_index_of_its_own_training_array() -> None:
    runs = (
        replace(LINEAR, is_trained=True),
        replace(DIRECT, train_job="8_1"),
        RunFacts("spatial-s0", 2),
        RunFacts("linear-s1", 3, is_trained=True, evaluate_job="9_3"),
    )
    requests = decide(StudyFacts(STUDY, runs, DATA, has_report=True), Resources(), 4)
    waits = {request.after: list(request.tasks) for request in requests if request.kind == "evaluate"}
    assert waits == {(): [0], ("aftercorr:8",): [1], ("aftercorr:train",): [2]}
    (train,) = [request for request in requests if request.kind == "train"]
    assert list(train.tasks) == [2]
    assert requests[-1].after == (
        "afterany:evaluate",
        "afterany:evaluate-1",
        "afterany:evaluate-2",
        "afterany:9_3",
    )


def test_a_single_run_is_still_an_array() -> None:
    train = decide(replace(NEW, runs=(DIRECT,), is_packed=True), Resources(), 4)[0]
    assert "#SBATCH --array=1\n" in sbatch_text(train, ClusterProfile(), CODE, "python")


def test_gpus_must_spread_evenly_over_nodes() -> None:
    assert Resources(8, 2).gpus_per_node == 4
    with pytest.raises(SettingsError, match="--gpus 3 cannot be spread evenly over --nodes 2"):
        Resources(3, 2)
    with pytest.raises(SettingsError):
        Resources(0)


@pytest.mark.parametrize("key", ["pack", "finalize", "train", "evaluate", "report"])
def test_script_is_the_golden_one(key: str) -> None:
    (request,) = [r for r in decide(NEW, Resources(8, 2), pack_jobs=4) if r.key == key]
    text = sbatch_text(request, read_profile("example"), CODE, "/shared/venv/bin/python")
    path = GOLDEN / f"{key}.sbatch"
    if os.environ.get("CXR_ACCEPT") == "1":
        path.write_text(text)
    assert text == path.read_text(), "if that is meant: CXR_ACCEPT=1 pytest tests/test_request.py"


def test_script_says_what_the_site_wants_said() -> None:
    train = decide(replace(NEW, is_packed=True), Resources(2), 4)[0]
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
    lines = sbatch_text(train, profile, CODE, profile.python).splitlines()
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
    assert f"    {runner} || code=$?" in lines


def test_script_never_asks_for_what_breaks_gpu_numbering_or_accounting() -> None:
    for request in decide(NEW, Resources(2), 4):
        text = sbatch_text(request, ClusterProfile(), CODE, "python")
        assert "gpus-per-task" not in text
        assert "wckey" not in text


def test_paths_with_spaces_are_quoted_and_others_refused() -> None:
    request = decide(replace(NEW, study_dir=Path("/my runs/x"), is_packed=True), Resources(), 4)[0]
    text = sbatch_text(request, ClusterProfile(), Path("/my code"), "/my env/python")
    assert '#SBATCH --output="/my runs/x/jobs/%A_%a.log"' in text
    assert "'/my env/python' -u -m submitit.core._submit '/my runs/x/jobs'" in text
    for bad in ("/a\nb", '/a"b', "/a'b", "/a%j", "/a$HOME", "/a\\b", "/a#1"):
        request = decide(replace(NEW, study_dir=Path(bad), is_packed=True), Resources(), 4)[0]
        with pytest.raises(SettingsError, match="misread"):
            sbatch_text(request, ClusterProfile(), CODE, "python")


def test_index_lists_are_short() -> None:
    assert index_list([0]) == "0"
    assert index_list([3, 1, 0, 2, 7, 9, 10]) == "0-3,7,9-10"
    assert sbatch_flag("requeue", "") == "#SBATCH --requeue"


def test_at_most_so_many_elements_run_at_once() -> None:
    train = decide(replace(NEW, is_packed=True), Resources(), pack_jobs=4)[0]
    text = sbatch_text(replace(train, max_parallel=1), ClusterProfile(), CODE, "python")
    assert "#SBATCH --array=0-1%1\n" in text
    assert text.replace("%1\n", "\n", 1) == sbatch_text(train, ClusterProfile(), CODE, "python")


def study_of(count: int, **facts: object) -> StudyFacts:
    """A packed study of so many runs of which nothing is done, but for `facts` of each."""
    runs = tuple(RunFacts(f"linear-s{seed}", seed, **facts) for seed in range(count))  # type: ignore[arg-type]
    return StudyFacts(STUDY, runs, DATA)


def test_a_study_above_the_largest_array_is_split_and_its_evaluations_in_the_same_way() -> None:
    requests = decide(study_of(2500), Resources(), pack_jobs=4, max_array_size=1001)
    assert keys(requests) == {
        "train": (),
        "train-1": (),
        "train-2": (),
        "evaluate": ("aftercorr:train",),
        "evaluate-1": ("aftercorr:train-1",),
        "evaluate-2": ("aftercorr:train-2",),
        "report": ("afterany:evaluate", "afterany:evaluate-1", "afterany:evaluate-2"),
    }
    specs = {request.key: array_spec(request) for request in requests if request.is_array}
    assert specs["train"] == specs["evaluate"] == "0-1000"
    assert specs["train-1"] == specs["evaluate-1"] == "0-1000"
    assert specs["train-2"] == specs["evaluate-2"] == "0-497"
    last = requests[2]
    assert last.tasks[2002] == TrainTask(f"{STUDY}/linear-s2002")
    assert describe(last).startswith("train chest: 0 = linear-s2002, 1 = linear-s2003, ")


def test_an_evaluation_takes_the_array_indices_of_the_training_that_is_under_way() -> None:
    """Even if SLURM's largest array has changed since."""
    runs = (RunFacts("linear-s0", 4, train_job="8_1"), RunFacts("linear-s1", 5, train_job="8_2"))
    (evaluate, _) = decide(StudyFacts(STUDY, runs, DATA), Resources(), 4, max_array_size=1001)
    assert (evaluate.after, array_spec(evaluate)) == (("aftercorr:8",), "1-2")


def test_packing_takes_no_more_elements_than_an_array_may_have() -> None:
    assert len(decide(NEW, Resources(), pack_jobs=8, max_array_size=3)[0].tasks) == 3


def test_a_cap_is_shared_by_the_arrays_of_a_split_study() -> None:
    requests = decide(study_of(2500), Resources(), pack_jobs=4, max_array_size=1001)
    caps = {request.key: request.max_parallel for request in with_cap(requests, 8)}
    assert [caps[key] for key in ("train", "train-1", "train-2")] == [3, 3, 2]
    assert [caps[key] for key in ("evaluate", "evaluate-1", "evaluate-2")] == [3, 3, 2]
    assert caps["report"] == 0
    assert with_cap(requests, 0) == requests
    with pytest.raises(SettingsError, match="--max-parallel 2, but the study takes 3 arrays"):
        with_cap(requests, 2)


@pytest.mark.parametrize(
    ("stop_s", "expected"), [(0.0, 180), (0.5, 120), (20.0, 120), (30.5, 152), (200.0, 660)]
)
def test_the_warning_comes_from_measured_saves(stop_s: float, expected: int) -> None:
    """Nothing measured: 180 s; else three times the slowest stop and SLURM's slack of a minute."""
    train = decide(study_of(2, stop_s=stop_s), Resources(), 4)[0]
    assert f"#SBATCH --signal=USR2@{expected}\n" in sbatch_text(train, ClusterProfile(), CODE, "python")


def test_a_limit_that_leaves_no_time_to_save_is_refused() -> None:
    train, evaluate, report = decide(study_of(1, stop_s=100.0), Resources(), 4)
    short = ClusterProfile(train_limit_min=23, evaluate_limit_min=2, report_limit_min=1)
    with pytest.raises(
        SettingsError, match=r"train_limit_min = 23 leaves too little .* 360 s before"
    ) as caught:
        sbatch_text(train, short, CODE, "python")
    assert caught.value.hint.startswith("allow at least 24 minutes")
    sbatch_text(train, replace(short, train_limit_min=24), CODE, "python")
    # these have nothing to save
    assert "#SBATCH --signal=USR2@30\n" in sbatch_text(evaluate, short, CODE, "python")
    assert "#SBATCH --signal=USR2@15\n" in sbatch_text(report, short, CODE, "python")
    # what the profile says goes, within reason
    early = replace(short, train_limit_min=120, warning_s=1800)
    assert "#SBATCH --signal=USR2@1800\n" in sbatch_text(train, early, CODE, "python")
    assert "#SBATCH --signal=USR2@30\n" in sbatch_text(evaluate, early, CODE, "python")

"""slurm/plan.py: what is submitted, decided from facts alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.errors import SettingsError
from slurm.node.task import EvaluateTask, JobKind, PackTask, TrainTask
from slurm.plan import JobRequest, Resources, RunFacts, StudyFacts, decide, with_cap
from slurm.sbatch import array_spec, describe

STUDY = Path("/shared/runs/chest")
DATA = Path("/shared/shards/chest")
LINEAR, DIRECT = RunFacts("linear-s0", 0), RunFacts("direct-s0", 1)
NEW = StudyFacts(STUDY, (LINEAR, DIRECT), DATA, num_shards=9)


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
    requests = decide(replace(NEW, num_shards=None), Resources(), pack_jobs=4)
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
    waits = {request.after: list(request.tasks) for request in requests if request.kind is JobKind.EVALUATE}
    assert waits == {(): [0], ("aftercorr:8",): [1], ("aftercorr:train",): [2]}
    (train,) = [request for request in requests if request.kind is JobKind.TRAIN]
    assert list(train.tasks) == [2]
    assert requests[-1].after == (
        "afterany:evaluate",
        "afterany:evaluate-1",
        "afterany:evaluate-2",
        "afterany:9_3",
    )


def test_gpus_must_spread_evenly_over_nodes() -> None:
    assert Resources(8, 2).gpus_per_node == 4
    with pytest.raises(SettingsError, match="--gpus 3 cannot be spread evenly over --nodes 2"):
        Resources(3, 2)
    with pytest.raises(SettingsError):
        Resources(0)


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


def test_a_report_waits_for_every_scoring_of_the_study_under_way() -> None:
    """So that it takes the place of the report of an earlier launch, which waits for those."""
    facts = replace(NEW, num_shards=None, runs=(DIRECT,), report_job="10", evaluate_jobs=("9_0",))
    assert keys(decide(facts, Resources(), 4))["report"] == ("afterany:evaluate", "afterany:9_0")

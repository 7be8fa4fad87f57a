"""slurm/diagnose/explain.py: from the facts about a run to one sentence; what nobody knows is not guessed."""

from typing import Any

import pytest

from slurm.diagnose.case import Case
from slurm.diagnose.explain import AGAIN, REASONS, cause_and_step, explain, is_settled
from slurm.node.task import JobKind

NOTHING_TO_DO = "; nothing to do."


def sentence(**facts: Any) -> str:
    return explain(Case("linear-s0", "runs/chest", **facts))


PENDING = {
    "Priority": "is queued: other jobs come first (Priority)" + NOTHING_TO_DO,
    "Resources": "is queued: it is next, as soon as enough nodes are free (Resources)" + NOTHING_TO_DO,
    "None": "is queued: SLURM has not looked at it yet; look again in a minute.",
    "JobArrayTaskLimit": "as many runs of the study as allowed are running (JobArrayTaskLimit); "
    "python jobs/throttle.py runs/chest N allows more at once.",
    "JobHeldUser": "held by its owner (JobHeldUser); python jobs/throttle.py runs/chest release.",
    "DependencyNeverSatisfied": "can never start, because the job it waits for has failed",
    "PartitionTimeLimit": "time limit is above the partition's, so it never starts (PartitionTimeLimit)",
    "ReqNodeNotAvail, UnavailableNodes:n[1-2]": "nodes it could use are down, or reserved",
    "QOSMaxGRESPerUser": "the QOS allows no more at once (QOSMaxGRESPerUser); it starts when others",
    "QOSMaxJobsPerUserLimit": "the QOS allows no more at once",
    "QOSGrpGRES": "the QOS allows no more at once",
    "QOSGrpCPURunMinutesLimit": "the QOS allows no more at once",
    "AssocGrpCpuLimit": "the account allows no more at once",
    "AssocGrpCPUMinutesLimit": "the time budget of the account is used up (AssocGrpCPUMinutesLimit)",
    "QOSGrpGRESMinutes": "the time budget of the QOS is used up",
    "QOSMaxWallDurationPerJobLimit": "asks for more (or less) than the QOS allows one job, so it",
    "QOSMaxCpuMinutesPerJobLimit": "asks for more (or less) than the QOS allows one job",
    "QOSMaxNodePerJobLimit": "asks for more (or less) than the QOS allows one job",
    "QOSMinGRES": "asks for more (or less) than the QOS allows one job",
    "AssocMaxGRESPerJob": "asks for more (or less) than the account allows one job",
    "job requeued in held state": "put it back into the queue and holds it (job requeued in held state); "
    "python jobs/throttle.py runs/chest release.",
    "job requeued in special exit state": "the site has put it back into the queue and holds it",
    "JobHoldMaxRequeue": "it was started in vain too often",
    "launch failed requeued held": "SLURM could not start it on its node",
    "Moonphase": "SLURM's reason is not one this toolkit knows (Moonphase); look it up in `man squeue`.",
}


@pytest.mark.parametrize("reason", PENDING)
def test_a_pending_reason_is_said_in_plain_words(reason: str) -> None:
    assert PENDING[reason] in sentence(job="8_0", state="PENDING", reason=reason)


def test_when_slurm_means_to_start_it_is_said() -> None:
    said = sentence(job="8_0", state="PENDING", reason="Priority", start="16:45")
    assert said.startswith("linear-s0: is queued and is expected to start at 16:45: other jobs come first")


def test_a_requeue_delay_is_no_alarm_and_no_guess() -> None:
    delay: dict[str, Any] = {"job": "8_0", "state": "PENDING", "reason": "BeginTime", "start": "16:45"}
    again = "linear-s0: is queued: SLURM delays what was requeued; it restarts at 16:45 (BeginTime)"
    first = "linear-s0: is queued: it starts at 16:45, not before its begin time (BeginTime)"
    assert sentence(jobs=("7_0", "8_0"), **delay) == again + NOTHING_TO_DO
    assert sentence(jobs=("7_0",), was_started=True, **delay) == first + NOTHING_TO_DO


def test_a_dependency_names_what_it_waits_for() -> None:
    waits = sentence(job="8_0", state="PENDING", reason="Dependency", waits_for="job 7")
    assert waits == "linear-s0: is queued: it waits for job 7 (Dependency); nothing to do."
    assert "does not name" in sentence(job="8_0", state="PENDING", reason="Dependency")


ENDED = [
    (
        {"state": "OUT_OF_MEMORY", "exit": "0:125"},
        "ran out of memory at step 5 of 9 (OUT_OF_MEMORY); allow more",
    ),
    ({"state": "OUT_OF_MEMORY", "error": "ValueError: x"}, "ran out of memory at step 5 of 9"),
    (
        {"state": "FAILED", "exit": "137:0"},
        "was killed by signal 9 at step 5 of 9, often because",
    ),
    ({"state": "FAILED", "exit": "9:0"}, "was killed by signal 9 at step 5 of 9, often because"),
    (  # one rank is killed, and srun ends the others
        {"state": "FAILED", "exit": "15:0", "notice": "n2: task 1: Killed"},
        "was killed by signal 9 at step 5 of 9 (n2: task 1: Killed), often because",
    ),
    (
        {"state": "FAILED", "exit": "0:9"},
        "was killed by signal 9 at step 5 of 9, often because memory ran out",
    ),
    (
        {
            "state": "FAILED",
            "exit": "1:0",
            "cause": "ran out of memory",
            "error": "ValueError: x",
            "fix": "a",
        },
        "ran out of memory; a.",
    ),
    (
        {"state": "FAILED", "exit": "137:0", "error": "ValueError: x"},
        "failed at step 5 of 9: ValueError: x; fix",
    ),
    ({"state": "FAILED", "exit": "143:0"}, "was asked to end from outside (TERM) at step 5 of 9"),
    (
        {"state": "FAILED", "exit": "7:0"},
        "ended as FAILED (exit code 7) at step 5 of 9; see python",
    ),
    ({"state": "TIMEOUT", "exit": "0:0"}, "came to its time limit at step 5 of 9 and was not requeued"),
    ({"state": "NODE_FAIL", "exit": "0:0"}, "lost its node at step 5 of 9; run the same launch command"),
    ({"state": "PREEMPTED", "exit": "0:0"}, "was preempted and not requeued at step 5 of 9"),
    ({"state": "CANCELLED", "exit": "0:15"}, f"was cancelled at step 5 of 9; {AGAIN}."),
    (
        {"state": "CANCELLED", "exit": "0:15", "saved": 4},
        f"was cancelled at step 5 of 9, saved at step 4; {AGAIN}.",
    ),
    ({"state": "INTERRUPTED", "saved": 5}, f"was interrupted at step 5 of 9, saved at step 5; {AGAIN}."),
    ({"state": "CANCELLED", "reason": "before it started"}, f"was cancelled before it started; {AGAIN}."),
    ({"state": "COMPLETED", "exit": "0:0"}, "ended well, but the run is not complete at step 5 of 9"),
    # without accounts, SLURM's words in the log are all there is
    (
        {"state": "GONE", "notice": "*** JOB 8 ON n1 CANCELLED AT 2026-01-31T16:45:00 DUE TO TIME LIMIT ***"},
        "came to",
    ),
    (
        {"state": "GONE", "notice": "*** JOB 8 ON n1 CANCELLED AT 2026-01-31T16:45:00 ***"},
        "was cancelled at step",
    ),
    (
        {"state": "GONE", "notice": "*** STEP 8.0 CANCELLED AT 2026-01-31T16:45:00 DUE TO NODE FAILURE"},
        "lost its",
    ),
    ({"state": "GONE", "notice": "n1: task 0: Killed"}, "was killed by signal 9"),
    (
        {"state": "GONE", "notice": "*** CANCELLED AT 2026-01-31T16:45:00 DUE TO JOB REQUEUE ***"},
        "it is unknown how",
    ),
    ({"state": "GONE", "error": "ValueError: x"}, "failed at step 5 of 9: ValueError: x"),
    ({"state": "GONE", "reason": "sacct does not answer"}, "it is unknown how (sacct does not answer)"),
]


def test_scores_that_were_removed_are_made_again() -> None:
    said = sentence(kind=JobKind.EVALUATE, job="9_0", state="COMPLETED", exit="0:0")
    gone = "the scores that the scoring job 9_0 wrote are gone or of other weights"
    assert said == f"linear-s0: is trained, but {gone}; {AGAIN}."


@pytest.mark.parametrize(("facts", "expected"), ENDED)
def test_how_a_job_ended(facts: dict[str, Any], expected: str) -> None:
    said = sentence(job="8_0", was_started=True, progress=" at step 5 of 9", **facts)
    assert said.startswith("linear-s0: the training job 8_0 ")
    assert expected in said


def test_an_account_that_is_silent_is_not_taken_for_a_job_that_never_ran() -> None:
    notice = "*** JOB 8 ON n1 CANCELLED AT 2026-01-31T16:45:00 ***"
    said = sentence(
        job="8_0", state="GONE", reason="sacct does not answer", notice=notice, progress=" at step 5"
    )
    assert "was cancelled at step 5; " in said


def test_runs_without_a_job() -> None:
    assert sentence() == "linear-s0: has not been launched yet; launch it."
    assert "stopped and no job of it is known" in sentence(was_started=True)
    assert "no job to score it was submitted" in sentence(kind=JobKind.EVALUATE, was_started=True)
    assert sentence(is_done=True) == "linear-s0: is trained and scored; nothing to do."


def test_a_local_study_works_on_one_run_after_another() -> None:
    assert "waits for its turn after process 41" in sentence(busy="41")
    assert "waits for its turn after process 41" in sentence(kind=JobKind.EVALUATE, busy="41")
    running = sentence(job="41", is_local=True, busy="41", state="RUNNING", progress=" at step 1 of 9")
    assert running == "linear-s0: is training at step 1 of 9; nothing to do."


def test_missing_shards_come_before_what_became_of_the_job() -> None:
    lost = "1 of 3 shards are missing in shards/x (test-00000.h5)"
    said = sentence(job="8_0", state="FAILED", exit="1:0", error="DataError: gone", shards=lost)
    assert said.startswith(f"linear-s0: {lost}; pack the images again")
    assert "wait for job 7" in sentence(shards=lost, waits_for="job 7")
    assert lost not in sentence(job="8_0", state="RUNNING", shards=lost)


def test_without_squeue_nobody_knows() -> None:
    said = sentence(job="8_0", state="UNKNOWN", shards="missing", error="ValueError: old")
    assert "nobody knows whether the training job 8_0 is still queued or running; try again later." in said


def test_every_reason_has_a_cause_and_a_next_step_on_one_line() -> None:
    for reason in REASONS:
        cause, step = cause_and_step(Case("a", "runs/b", job="8_0", state="PENDING", reason=reason))
        assert "" not in (cause, step)
        assert not set("\n{}") & set(cause + step)


@pytest.mark.parametrize(
    ("facts", "settled"),
    [
        ({"state": "RUNNING", "job": "8_0"}, False),
        ({"state": "PENDING", "job": "8_0"}, False),
        ({"state": "UNKNOWN", "job": "8_0"}, False),
        ({"busy": "41"}, False),
        ({"state": "FAILED", "job": "8_0"}, True),
        ({"state": "GONE", "job": "41", "busy": "43", "is_local": True}, True),
        ({}, True),
        ({"is_done": True, "busy": "41"}, True),
    ],
)
def test_what_nothing_will_change_any_more_is_settled(facts: dict[str, Any], settled: bool) -> None:
    assert is_settled(Case("linear-s0", "runs/chest", **facts)) is settled


def test_a_damaged_file_comes_first() -> None:
    said = sentence(damage="runs/chest/linear-s0/done.json is damaged", fix="remove it", is_done=True)
    assert said == "linear-s0: runs/chest/linear-s0/done.json is damaged; remove it."


def test_a_job_on_its_nodes_may_be_ending_or_suspended() -> None:
    assert "is just ending (COMPLETING); look again" in sentence(job="8_0", state="COMPLETING")
    assert "is suspended by SLURM (SUSPENDED); it goes on by itself" in sentence(job="8_0", state="SUSPENDED")
    scoring = sentence(job="9_0", state="RUNNING", kind=JobKind.EVALUATE)
    assert scoring == "linear-s0: is trained and is being scored in job 9_0; nothing to do."

"""slurm/job_states.py: what squeue and sacct say of our jobs, once or again and again."""

import msgspec
import pytest
from fake_slurm import FakeSlurm
from slurm_jobs import EVALUATE, LOCAL, TRAIN, seen

from slurm.client import QueueWatch
from slurm.job_states import MAX_ACCOUNT_LOOKS, Scheduler, SchedulerWatch, ask_scheduler

SILENT = Scheduler({}, {})


def test_without_slurm_programs_the_scheduler_does_not_answer(fake_slurm: FakeSlurm) -> None:
    fake_slurm.uninstall()
    assert ask_scheduler([TRAIN]) == Scheduler(None, None)
    assert ask_scheduler([]) == SILENT
    assert ask_scheduler([LOCAL]) == SILENT  # SLURM has no say in it


def waits(*needs: str, reason: str = "Dependency") -> tuple[str, str, str]:
    return "PENDING", reason, ",".join(needs) or "(null)"


NEVER = waits("afterok:2_*(failed)", reason="DependencyNeverSatisfied")
RUNS = ("RUNNING",)


def test_what_needs_a_job_that_never_starts_never_starts_either() -> None:
    queue = {"3": NEVER, "6": waits("afterany:5_*(unfulfilled)"), "7_0": waits()}
    queue |= {f"4_{index}": waits("afterok:3(unfulfilled)") for index in (0, 1)}
    queue |= {f"5_{index}": waits("aftercorr:4_*(unfulfilled)") for index in (0, 1)}
    assert seen(queue).never_satisfiable() == {"3", "4_0", "4_1", "5_0", "5_1"}
    # task by task
    assert seen(queue | {"4_0": NEVER, "3": RUNS}).never_satisfiable() == {"4_0", "5_0"}


def test_what_waits_for_a_job_that_has_just_ended_is_undecided() -> None:
    queue = {f"5_{index}": waits("aftercorr:4_*(unfulfilled)") for index in (0, 1)}
    queue |= {"5_2": waits("aftercorr:4_*(unfulfilled)", reason="JobHeldUser"), "5_3": RUNS, "4_1": RUNS}
    queue |= {"6": waits("afterok:4_*(unfulfilled)"), "7": waits("afterok:3(unfulfilled)")}
    queue |= {"8_0": waits("aftercorr:7(unfulfilled)"), "9": waits("afterany:3(unfulfilled)")}
    assert seen(queue).in_transition() == {"5_0", "7"}
    assert seen(None).in_transition() == set()


def test_undecided_and_never_satisfiable_as_slurm_itself_tells_them(fake_slurm: FakeSlurm) -> None:
    train = fake_slurm.submit("train", array="0-1")
    scores = fake_slurm.submit("evaluate", array="0-1", after=f"aftercorr:{train}")
    report = fake_slurm.submit("report", after=f"afterok:{scores}")
    fake_slurm.settles_at_once = False
    fake_slurm.start(train)
    fake_slurm.end(f"{train}_0", "FAILED")
    assert ask_scheduler([TRAIN]).in_transition() == {f"{scores}_0"}
    assert ask_scheduler([TRAIN]).never_satisfiable() == set()
    fake_slurm.settle()
    assert ask_scheduler([TRAIN]).in_transition() == set()
    assert ask_scheduler([TRAIN]).never_satisfiable() == {f"{scores}_0", report}


def test_a_job_of_another_name_is_not_taken_for_ours(fake_slurm: FakeSlurm) -> None:
    """Ids start anew on a new controller."""
    for name in ("other", "chest-evaluate", "chest-train", "other"):
        fake_slurm.submit(name, array="0")
    fake_slurm.start("1", "3", "4")
    fake_slurm.end("3", "FAILED", exit="7:0")
    fake_slurm.end("4", "FAILED")
    names = ("chest-train", "chest-evaluate", "chest-train", "chest-evaluate")
    records = [
        msgspec.structs.replace(TRAIN, id=str(number), name=name) for number, name in enumerate(names, 1)
    ]
    scheduler = ask_scheduler(records)
    assert list(scheduler.queue or ()) == ["2_0"]
    assert {job: (row.state, row.exit) for job, row in (scheduler.ended or {}).items()} == {
        "2_[0]": ("PENDING", "0:0"),
        "3_0": ("FAILED", "7:0"),
    }
    assert ask_scheduler(records, with_accounts=False).ended is None


# --- again and again -----------------------------------------------------------------------------


@pytest.fixture
def watch(fake_slurm: FakeSlurm) -> SchedulerWatch:
    """Asks squeue every 10 s, and at last once a minute, by the cluster's own clock."""
    queue = QueueWatch(least_every_s=10, most_every_s=60, clock=fake_slurm.clock, sleep=fake_slurm.sleep)
    return SchedulerWatch(queue)


def test_squeue_is_asked_seldom_and_sacct_only_when_a_job_has_left(
    fake_slurm: FakeSlurm, watch: SchedulerWatch
) -> None:
    job = fake_slurm.submit("train", array="0-1")
    record = msgspec.structs.replace(TRAIN, id=job)
    fake_slurm.at(100, lambda: fake_slurm.start(job))
    fake_slurm.at(1000, lambda: fake_slurm.end(f"{job}_0", "FAILED"))
    fake_slurm.at(2000, lambda: fake_slurm.end(f"{job}_1"))
    seen: list[str] = []
    for _ in range(1500):
        states = [watch.look([record]).state(record, index).state for index in (0, 1)]
        if " ".join(states) not in seen:
            seen.append(" ".join(states))
        fake_slurm.sleep(2)
    assert seen == ["PENDING PENDING", "RUNNING RUNNING", "FAILED RUNNING", "FAILED COMPLETED"]
    assert fake_slurm.asked("sacct") == 2
    assert 3000 / 60 <= fake_slurm.asked("squeue") <= 3000 / 60 + 4 * 3


def test_accounts_that_lag_behind_are_asked_again_but_not_for_ever(
    fake_slurm: FakeSlurm, watch: SchedulerWatch
) -> None:
    job = fake_slurm.submit("train", array="0-1")
    record = msgspec.structs.replace(TRAIN, id=job)
    fake_slurm.start(job)
    fake_slurm.accounts_lag()
    fake_slurm.end(f"{job}_0", "FAILED")
    assert watch.look([record]).state(record, 0) == ("GONE", "not yet in the accounts")
    fake_slurm.accounts_catch_up()
    assert watch.look([record]).state(record, 0) == ("FAILED", "")
    assert fake_slurm.asked("sacct") == 2
    fake_slurm.accounts_off()
    fake_slurm.end(f"{job}_1")
    for _ in range(20):
        fake_slurm.sleep(60)
        assert watch.look([record]).state(record, 1).state == "GONE"
    assert fake_slurm.asked("sacct") == 2 + MAX_ACCOUNT_LOOKS


def test_a_job_that_was_requeued_may_end_in_another_way(fake_slurm: FakeSlurm, watch: SchedulerWatch) -> None:
    job = fake_slurm.submit("train", array="0")
    record = msgspec.structs.replace(TRAIN, id=job, indices=(0,))
    for end in ("NODE_FAIL", "COMPLETED"):
        fake_slurm.start(job)
        fake_slurm.end(job, end)
        fake_slurm.sleep(60)
        assert watch.look([record]).state(record, 0) == (end, "")
        fake_slurm.requeue(job)
        fake_slurm.sleep(60)
        assert watch.look([record]).state(record, 0) == ("PENDING", "BeginTime")


def test_a_new_job_is_looked_for_at_once(fake_slurm: FakeSlurm, watch: SchedulerWatch) -> None:
    """What squeue said before it was submitted would say that it is gone."""
    first = msgspec.structs.replace(TRAIN, id=fake_slurm.submit("train", array="0-1"))
    watch.look([first])
    second = msgspec.structs.replace(EVALUATE, id=fake_slurm.submit("evaluate", array="0-1"))
    assert watch.look([first, second]).state(second, 0).state == "PENDING"
    assert fake_slurm.asked("squeue") == 2


def test_a_study_on_this_machine_needs_no_slurm(fake_slurm: FakeSlurm, watch: SchedulerWatch) -> None:
    assert watch.look([LOCAL]) == SILENT
    assert fake_slurm.calls == []


def test_without_squeue_nobody_knows(fake_slurm: FakeSlurm, watch: SchedulerWatch) -> None:
    fake_slurm.controller_down()
    assert watch.look([TRAIN]) == Scheduler(None, None)
    assert fake_slurm.asked("sacct") == 0

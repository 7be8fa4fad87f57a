"""tests/fake_slurm.py: the cluster in memory behaves as the real one, as far as the toolkit can see."""

import re
import time
from collections.abc import Callable

import pytest
from devcluster import DevCluster, wait_for
from fake_slurm import FakeSlurm, UnknownCallError

from data_prep.errors import ClusterError
from slurm import client

Queue = dict[str, tuple[str, str, str]]


def script(name: str, array: str = "", *flags: str) -> str:
    lines = [f"#SBATCH --{flag}" for flag in ("requeue", "output=/dev/null", f"job-name={name}", *flags)]
    return "\n".join(
        ["#!/bin/bash", *lines, *([f"#SBATCH --array={array}"] if array else []), "sleep 600", ""]
    )


def shown() -> Queue:
    """State, reason and needs of what is queued, by id, as the toolkit sees it."""
    jobs = client.queue()
    assert jobs is not None
    return {job.id: (job.state, job.reason, job.needs) for job in jobs}


def states(*jobs: str) -> dict[str, str]:
    rows = client.accounts(jobs)
    assert rows is not None
    return {row.id: row.state for row in rows}


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(client.SlurmRefused) as caught:
        act()
    return caught.value.words


def play(start: Callable[[str], object], until: Callable[[Callable[[], bool]], None]) -> list[object]:
    """A story that both clusters can play; returns what the toolkit saw of it."""
    story: list[object] = []
    array = client.sbatch(script("train", "0-3%2"), "--parsable").strip()
    after = client.sbatch(script("score", "0-3"), "--parsable", f"--dependency=aftercorr:{array}").strip()
    last = client.sbatch(script("report"), "--parsable", f"--dependency=afterany:{after}").strip()
    names = {array: "A", after: "B", last: "C"}

    def named(text: str) -> str:
        """The text with names for ids, which depend on the jobs before this story."""
        return re.sub(r"(?<![\d_])\d+(?=_|$)", lambda number: names.get(number[0], number[0]), text)

    def note(seen: dict[str, object]) -> None:
        story.append(
            {
                named(job): tuple(map(named, what)) if isinstance(what, tuple) else what
                for job, what in sorted(seen.items())
            }
        )

    start(f"{array}_0")
    start(f"{array}_1")
    until(lambda: [job[0] for job in shown().values()].count("RUNNING") == 2)
    until(lambda: ("PENDING", "None") not in {job[:2] for job in shown().values()})  # not looked at yet
    note({**shown()})
    until(lambda: [*states(array).values()].count("RUNNING") == 2)
    note({job: state for job, state in states(array).items() if "[" not in job})
    client.cancel(f"{array}_2")
    client.set_array_throttle(array, 3)
    start(f"{array}_3")
    until(lambda: shown()[f"{array}_3"][0] == "RUNNING")
    client.requeue(f"{array}_0")
    until(lambda: shown()[f"{array}_0"][1] == "BeginTime")
    note({**shown()})
    client.requeue_unless_ending(f"{array}_0")  # it does not run: nothing is done, nothing said
    client.hold(array)
    until(lambda: shown()[f"{array}_0"][1] == "JobHeldUser")
    client.release(array)
    until(lambda: shown()[f"{array}_0"][1] == "BeginTime")
    story.append(named(refusal(lambda: client.requeue(f"{array}_2"))))
    client.cancel(f"{array}_1")
    until(lambda: shown()[f"{after}_1"][1] == "DependencyNeverSatisfied")
    note({job: what for job, what in shown().items() if job.startswith(after)})
    until(lambda: states(array).get(f"{array}_1") == "CANCELLED")
    # in the accounts, what was requeued is REQUEUED for a moment, then PENDING
    note({job: state for job, state in states(array).items() if not job.endswith("_0")})
    until(lambda: f"{array}_1" not in shown())
    client.requeue_unless_ending(f"{array}_1")  # nor is it what has been cancelled
    remembered = {job.id: job.state for job in client.remembered() or ()}
    note({job: state for job, state in remembered.items() if job in (f"{array}_1", f"{array}_3")})
    client.cancel(f"{array}_1")  # it has ended: no failure
    client.cancel(after, last, array)
    until(lambda: shown() == {})
    client.hold(array)
    client.set_array_throttle(array, 1)
    story.append(client.show_job("999999"))
    story.append(refusal(lambda: client.order("scancel", "--signal=USR2", "999999")))
    return story


def test_the_story_of_an_array_in_memory(fake_slurm: FakeSlurm) -> None:
    story = play(fake_slurm.start, lambda is_true: None if is_true() else pytest.fail(str(shown())))
    assert story[0] == {
        "A_0": ("RUNNING", "None", "(null)"),
        "A_1": ("RUNNING", "None", "(null)"),
        "A_2": ("PENDING", "JobArrayTaskLimit", "(null)"),
        "A_3": ("PENDING", "JobArrayTaskLimit", "(null)"),
        **{f"B_{index}": ("PENDING", "Dependency", "aftercorr:A_*(unfulfilled)") for index in range(4)},
        "C": ("PENDING", "Dependency", "afterany:B_*(unfulfilled)"),
    }


@pytest.mark.slurm
@pytest.mark.slow
def test_the_same_story_on_the_real_cluster(
    fake_slurm: FakeSlurm, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = play(fake_slurm.start, lambda is_true: None)
    monkeypatch.undo()
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    happened = play(lambda job: None, lambda is_true: wait_for(is_true, 60, lambda: str(shown())))
    for seen, expected in zip(happened, told, strict=True):
        assert seen == expected


def test_what_the_toolkit_does_not_ask_is_refused_loudly(fake_slurm: FakeSlurm) -> None:
    for command in (
        ("squeue", "--noheader", "--me"),
        ("scontrol", "suspend", "8"),
        ("sacct", "--jobs=8"),
        ("scancel",),
        ("sprio", "--noheader"),
        ("sbatch", "--wrap=hostname"),
    ):
        with pytest.raises(UnknownCallError):
            client.query(*command)


def test_a_job_that_waits_for_a_failed_one_is_cancelled_if_it_was_submitted_so(fake_slurm: FakeSlurm) -> None:
    first = fake_slurm.submit("pack")
    stays = fake_slurm.submit("train", after=f"afterok:{first}")
    goes = fake_slurm.submit("train", after=f"afterok:{first}", flags=("kill-on-invalid-dep=yes",))
    later = fake_slurm.submit("report", after=f"afterany:{goes}")
    fake_slurm.start(first)
    fake_slurm.end(first, "FAILED", exit="7:0")
    assert {job: what[1] for job, what in shown().items()} == {
        stays: "DependencyNeverSatisfied",
        later: "None",
    }
    assert client.accounts([first]) == (client.EndedJob(first, "FAILED", "pack", "7:0"),)


def test_dependencies_may_be_looked_at_later(fake_slurm: FakeSlurm) -> None:
    first = fake_slurm.submit("pack")
    waiting = fake_slurm.submit("train", after=f"afterok:{first}")
    fake_slurm.settles_at_once = False
    fake_slurm.start(first)
    fake_slurm.end(first)
    assert shown() == {waiting: ("PENDING", "Dependency", f"afterok:{first}(unfulfilled)")}
    fake_slurm.settle()
    assert shown() == {waiting: ("PENDING", "None", "(null)")}


def test_accounts_may_lag_forget_and_be_off(fake_slurm: FakeSlurm) -> None:
    job = fake_slurm.submit("train", array="0")
    fake_slurm.start(job)
    fake_slurm.accounts_lag()
    fake_slurm.end(f"{job}_0")
    assert states(job) == {f"{job}_0": "RUNNING"}
    fake_slurm.accounts_catch_up()
    assert states(job) == {f"{job}_0": "COMPLETED"}
    fake_slurm.forget(job)
    assert states(job) == {}
    assert "Invalid job id" in refusal(lambda: client.order("scontrol", "uhold", job))
    fake_slurm.accounts_off()
    assert client.accounts([job]) is None


def test_a_controller_that_is_down_and_programs_that_are_missing(fake_slurm: FakeSlurm) -> None:
    client.require_slurm()
    fake_slurm.controller_down()
    assert (client.queue(), client.slurm_answers()) == (None, False)
    with pytest.raises(ClusterError, match="its controller is not reached"):
        client.require_slurm()
    fake_slurm.controller_up()
    fake_slurm.hang("squeue")
    assert (client.queue(), client.slurm_answers()) == (None, True)
    fake_slurm.uninstall("scontrol")
    assert client.missing_programs() == ["scontrol"]
    fake_slurm.uninstall()
    assert not client.has_programs()


def test_sbatch_refuses_in_the_sites_words(fake_slurm: FakeSlurm) -> None:
    fake_slurm.refuse("Invalid account or account/partition combination specified")
    for flags in ((), ("--test-only",)):
        assert "Invalid account" in refusal(lambda flags=flags: client.sbatch(script("train"), *flags))
    fake_slurm.refuse("")
    client.sbatch(script("train"), "--test-only")
    assert shown() == {}
    assert "Invalid job array" in refusal(lambda: client.sbatch(script("train", "0-1001")))


def test_time_passes_only_when_somebody_sleeps(
    fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm.take_over_time(monkeypatch)
    job = fake_slurm.submit("train")
    fake_slurm.at(60, lambda: fake_slurm.start(job))
    fake_slurm.at(3600, lambda: fake_slurm.end(job))
    before = time.monotonic()
    time.sleep(61)
    assert shown()[job][0] == "RUNNING"
    time.sleep(3600)
    assert (shown(), time.monotonic() - before) == ({}, 3661)


def test_signals_reach_what_runs(fake_slurm: FakeSlurm) -> None:
    job = fake_slurm.submit("train", array="0-1")
    fake_slurm.start(f"{job}_0")
    client.order("scancel", "--signal=KILL", f"{job}_0.0")
    assert fake_slurm.signals == [(f"{job}_0.0", "KILL")]
    assert "can not be altered" in refusal(lambda: client.order("scancel", "--signal=USR2", f"{job}_1"))


def test_a_preempted_job_says_so_and_begins_again_later(fake_slurm: FakeSlurm) -> None:
    job = fake_slurm.submit("train", array="0")
    fake_slurm.start(job)
    fake_slurm.preempt(job, at_once=False)
    assert " PreemptTime=2026" in (client.show_job(f"{job}_0") or "")
    fake_slurm.preempt(job)
    assert shown()[f"{job}_0"][1] == "BeginTime"
    assert " PreemptTime=None" in (client.show_job(f"{job}_0") or "")
    assert " Restarts=1 " in (client.show_job(f"{job}_0") or "")

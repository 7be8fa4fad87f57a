"""slurm/cancel_throttle.py: cancel, hold, release, throttle; on a cluster in memory and on this machine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from devcluster import wait_for
from doors import run_door
from fake_slurm import FakeSlurm
from tiny import REPOSITORY, TINY_FLAGS, child_environment, make_shards

from data_prep.errors import ClusterError
from slurm import local
from slurm.cancel_throttle import (
    SLURM_END_S,
    cancel,
    describe,
    hold,
    release,
    set_throttle,
    settle,
)
from slurm.client import OVER
from slurm.diagnose.explain import AGAIN
from slurm.job_records import JobRecord, add_record, read_records
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from vae.metrics import read_progress
from vae.study import Study, prepare_study

STUDY = Study("chest", ("linear-s0", "direct-s0"), "smoke")
TINY = (*TINY_FLAGS, "--run.log_every_steps", "5")


# --- on a cluster in memory ----------------------------------------------------------------------


@pytest.fixture
def study_dir(tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose two runs are queued: jobs 1 (train), 2 (evaluate) and 3 (report)."""
    fake_slurm.take_over_time(monkeypatch)
    folder = tmp_path / STUDY.name
    queue(fake_slurm, folder, JobKind.TRAIN)
    queue(fake_slurm, folder, JobKind.EVALUATE, after="aftercorr:1")
    queue(fake_slurm, folder, JobKind.REPORT, array="", after="afterany:2")
    return folder


def queue(fake: FakeSlurm, folder: Path, kind: JobKind, array: str = "0-1", after: str = "") -> str:
    """Queue one job of a study and put it on record; returns its id."""
    job = fake.submit(f"chest-{kind}", array, after)
    runs = (0, 1) if array else (0,)
    record = JobRecord(job, kind, Backend.SLURM, bool(array), runs, "login", name=f"chest-{kind}")
    folder.mkdir(exist_ok=True)
    add_record(folder, record)
    return job


def states(fake: FakeSlurm) -> dict[str, str]:
    return {job.id: job.state for job in fake.jobs.values()}


def test_what_waits_for_others_is_cancelled_first(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    assert list(cancel(study_dir, STUDY)) == [
        "cancelled: report of the study (job 3)",
        "cancelled: evaluate linear-s0, direct-s0 (job 2)",
        "cancelled: train linear-s0, direct-s0 (job 1)",
    ]
    orders = [call.command[2:] for call in fake_slurm.calls if call.command[0] == "scancel"]
    assert orders == [("3",), ("2",), ("1",)]
    assert set(states(fake_slurm).values()) == {"CANCELLED"}
    assert cancel(study_dir, STUDY) == {}


def test_one_run_is_cancelled_and_the_report_stays(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    assert list(cancel(study_dir, STUDY, "direct-s0")) == [
        "cancelled: evaluate direct-s0 (job 2_1)",
        "cancelled: train direct-s0 (job 1_1)",
    ]
    left = {job for job, state in states(fake_slurm).items() if state == "PENDING"}
    assert left == {"1_0", "2_0", "3"}


def test_cancel_returns_when_a_training_has_saved_and_asks_squeue_seldom(
    study_dir: Path, fake_slurm: FakeSlurm
) -> None:
    fake_slurm.start("1_0")
    fake_slurm.jobs["1_0"].lingers = True
    fake_slurm.at(25, lambda: fake_slurm.end("1_0", "CANCELLED"))
    lines = cancel(study_dir, STUDY)
    assert lines["cancelled: train linear-s0, direct-s0 (job 1)"]
    assert states(fake_slurm)["1_0"] == "CANCELLED"
    assert fake_slurm.now_s == 30  # looked at after 0, 10 and 30 seconds
    assert fake_slurm.asked("squeue") == 1 + 3 + 1


def test_cancel_does_not_wait_for_ever_and_says_what_it_still_is(
    study_dir: Path, fake_slurm: FakeSlurm
) -> None:
    fake_slurm.start("1_0")
    fake_slurm.jobs["1_0"].lingers = True
    lines = cancel(study_dir, STUDY)
    assert states(fake_slurm)["1_0"] == "COMPLETING"
    assert SLURM_END_S <= fake_slurm.now_s < SLURM_END_S + 60
    assert list(lines.items())[2:] == [
        ("still COMPLETING: train linear-s0 (job 1_0)", False),
        ("cancelled: train direct-s0 (job 1_1)", True),
    ]
    prepare_study(study_dir, STUDY)
    done = run_door("cancel", study_dir)
    assert (done.returncode, done.stdout) == (1, "still COMPLETING: train linear-s0 (job 1)\n")


def test_a_job_that_comes_back_is_cancelled_again(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.start("1_0")
    fake_slurm.jobs["1_0"].lingers = True
    fake_slurm.at(5, lambda: fake_slurm.requeue("1_0"))
    assert cancel(study_dir, STUDY)["cancelled: train linear-s0, direct-s0 (job 1)"]
    assert fake_slurm.jobs["1_0"].restarts == 1
    assert states(fake_slurm)["1_0"] == "CANCELLED"


def test_what_had_ended_by_itself_is_not_called_cancelled(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.start("1_0")
    fake_slurm.jobs["1_0"].lingers = True
    fake_slurm.at(5, lambda: fake_slurm.end("1_0", "COMPLETED"))
    assert cancel(study_dir, STUDY)["ended before that (COMPLETED): train linear-s0 (job 1_0)"]


def test_without_an_answer_nothing_is_called_cancelled(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.start("1_0")
    fake_slurm.jobs["1_0"].lingers = True
    fake_slurm.at(5, fake_slurm.controller_down)
    lines = cancel(study_dir, STUDY)
    assert len(lines) == 3
    assert all(line.startswith("still unknown, for squeue does not answer") for line in lines)
    assert not any(lines.values())


def test_what_waits_is_held_and_what_runs_goes_on(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.start("1_0")
    assert hold(study_dir, STUDY) == [
        "held: train direct-s0 (job 1)",
        "goes on: train linear-s0, held if it is requeued",
        "held: evaluate linear-s0, direct-s0 (job 2)",
    ]
    assert [job for job, task in fake_slurm.jobs.items() if task.is_held] == ["1_0", "1_1", "2_0", "2_1"]
    assert release(study_dir, STUDY) == [
        "released: train linear-s0, direct-s0 (job 1)",
        "released: evaluate linear-s0, direct-s0 (job 2)",
    ]
    assert not any(task.is_held for task in fake_slurm.jobs.values())


def test_arrays_of_one_kind_share_what_may_run_at_once(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    queue(fake_slurm, study_dir, JobKind.TRAIN)
    assert set_throttle(study_dir, STUDY, 3) == [
        "at most 2 at once: train (job 1)",
        "at most 3 at once: evaluate (job 2)",
        "at most 1 at once: train (job 4)",
    ]
    fake_slurm.start("4_0")
    assert fake_slurm.reason(fake_slurm.jobs["4_1"]) == "JobArrayTaskLimit"
    with pytest.raises(ClusterError, match="0 runs at once"):
        set_throttle(study_dir, STUDY, 0)


def test_a_study_on_this_machine_cannot_be_throttled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_record(tmp_path, JobRecord("4711", JobKind.TRAIN, Backend.LOCAL, False, (0,), "here"))
    monkeypatch.setattr(local, "is_running_here", lambda record: True)
    for change in (hold, release, lambda *study: set_throttle(*study, 2)):
        with pytest.raises(ClusterError, match="this study runs on this machine"):
            change(tmp_path, STUDY)


def test_many_runs_are_counted() -> None:
    study = Study("chest", tuple(f"linear-s{seed}" for seed in range(7)), "smoke")
    record = JobRecord("8", JobKind.TRAIN, Backend.SLURM, True, tuple(range(7)), "login")
    assert describe(record, [0, 2], study) == "train linear-s0, linear-s2"
    assert describe(record, range(7), study).endswith("linear-s3, linear-s4, ... (7 runs)")


def test_a_launch_waits_until_slurm_has_looked_at_what_has_just_ended(
    study_dir: Path, fake_slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fake_slurm.settles_at_once = False
    fake_slurm.start("1")
    fake_slurm.end("1_0", "FAILED")
    fake_slurm.completing("1_1")
    fake_slurm.at(15, lambda: fake_slurm.end("1_1"))
    fake_slurm.at(25, fake_slurm.settle)
    settle(read_records(study_dir))
    assert fake_slurm.now_s >= 25
    assert caplog.messages == [
        "waiting for SLURM to settle jobs that are just ending: 1_1, 2_0",
        "cancelled, for what they waited for has failed: 2_0",
    ]
    assert states(fake_slurm)["2_0"] == "CANCELLED"


def test_what_can_never_start_is_cancelled(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.start("1")
    fake_slurm.end("1_0", "FAILED")
    settle(read_records(study_dir))
    assert states(fake_slurm)["2_0"] == "CANCELLED"
    num_orders = fake_slurm.asked("scancel")
    settle(read_records(study_dir))
    assert fake_slurm.asked("scancel") == num_orders == 1


def test_what_is_settled_is_looked_at_once_and_no_jobs_not_at_all(
    study_dir: Path, fake_slurm: FakeSlurm
) -> None:
    settle([])
    assert fake_slurm.calls == []
    settle(read_records(study_dir))
    assert [call.command[0] for call in fake_slurm.calls] == ["squeue"]


def test_nothing_is_changed_while_nobody_knows_what_is_queued(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.controller_down()
    for change in (cancel, hold, release, lambda *study: set_throttle(*study, 2)):
        with pytest.raises(ClusterError, match="nobody knows what is queued or running"):
            change(study_dir, STUDY)
    assert {call.command[0] for call in fake_slurm.calls} == {"squeue"}


# --- without SLURM -------------------------------------------------------------------------------


def test_a_study_without_jobs_has_nothing_to_cancel(tmp_path: Path) -> None:
    assert cancel(tmp_path, STUDY) == {}
    assert set_throttle(tmp_path, STUDY, 2) == []


@pytest.mark.parametrize(
    ("words", "is_over"),
    [
        ("4_0-1: Job has already finished", True),
        ("scancel: error: Kill job error on job id 9: Invalid job id specified", True),
        ("Job/step already completing or completed", True),
        ("Access/permission denied", False),
        ("Unable to contact slurm controller (connect failure)", False),
    ],
)
def test_only_a_job_that_has_ended_may_refuse(words: str, is_over: bool) -> None:
    assert bool(OVER.search(words)) is is_over


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "stop", ""])
def test_a_throttle_is_a_number_hold_or_release(tmp_path: Path, count: str) -> None:
    prepare_study(tmp_path / "chest", STUDY)
    done = run_door("throttle", tmp_path / "chest", "--", count)
    assert done.returncode == 2
    assert done.stderr == f"error: {count!r} is not allowed\nhint: give a number from 1, hold or release\n"


def last_step(run_dir: Path) -> int:
    """The last step in metrics.jsonl; 0 before there is one."""
    return read_progress(run_dir).step


def launch_here(folder: Path, variant: str, study: str) -> subprocess.Popen[str]:
    """A launcher that trains here for long, on tiny data in `folder`."""
    make_shards(folder / "shards" / "tiny")
    words = ["--variant", variant, "--data", "shards/tiny", "--study", study, "--cluster", "local", *TINY]
    command = [sys.executable, str(REPOSITORY / "jobs" / "launch.py"), *words, "--run.epochs", "10000"]
    return subprocess.Popen(command, cwd=folder, env=child_environment(), stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_local_study_is_cancelled_with_its_launcher_and_goes_on(tmp_path: Path) -> None:
    launcher = launch_here(tmp_path, "both", "here")
    study_dir = tmp_path / "runs" / "here"

    def here(name: str, *words: str) -> str:
        done = run_door(name, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        wait_for(lambda: last_step(study_dir / "linear-s0") >= 20, 120, lambda: str(launcher.poll()))
        (record,) = read_records(study_dir)
        lines = here("why", "here").splitlines()
        assert re.fullmatch(r"linear-s0: is training at step \d+ of 80,000; nothing to do\.", lines[0])
        assert f"direct-s0: is not trained and waits for its turn after process {record.id}," in lines[1]
        lines = here("cancel", "here").splitlines()
        assert lines == [f"cancelled: train linear-s0 (process {record.id})"]
        assert launcher.wait(60) == 130
    finally:
        launcher.terminate()  # ends its job, too
        launcher.communicate()
    assert [job.id for job in read_records(study_dir)] == [record.id]  # the other run was not begun
    assert list((study_dir / "linear-s0").glob("checkpoints/step_*"))
    assert here("cancel", "here") == "nothing of here is queued or running\n"
    lines = here("why", "here").splitlines()
    step = last_step(study_dir / "linear-s0")
    cause = f"was cancelled at step {step:,} of 80,000, saved at step {step:,}"
    assert lines[0] == f"linear-s0: the training process {record.id} {cause}; {AGAIN}."
    shown = here("status", "here")
    assert re.search(rf"^linear-s0 +cancelled .* saved at step {step:,}$", shown, re.M)
    assert lines[1] == "direct-s0: has not been launched yet; launch it."
    assert "step 5 of 80000" in here("logs", "here/linear-s0")


@pytest.mark.slow
def test_one_local_run_is_cancelled_and_its_launcher_says_so_and_goes_on(tmp_path: Path) -> None:
    launcher = launch_here(tmp_path, "linear", "one")
    run_dir = tmp_path / "runs" / "one" / "linear-s0"
    try:
        wait_for(lambda: last_step(run_dir) >= 20, 120, lambda: str(launcher.poll()))
        assert run_door("cancel", "one/linear-s0", cwd=tmp_path).returncode == 0
        _, text = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == 1
    assert "failed: train linear-s0 was cancelled\n" in text
    assert (tmp_path / "runs" / "one" / "report.html").exists()

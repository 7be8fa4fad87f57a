"""slurm/diagnose/gather_case.py: the facts about a run, from real folders and a cluster in memory."""

import os
import socket
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from fake_slurm import BEGINS, FakeSlurm
from slurm_jobs import LOCAL
from tiny import finish, make_run, score, write_attempts, write_lines

from slurm import local
from slurm.diagnose.case import Case
from slurm.diagnose.explain import explain
from slurm.diagnose.gather_case import clock, gather, needed, what_is_wrong_with
from slurm.job_records import JobRecord, add_record
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from vae.events import StopSignalled, add_event
from vae.metrics import StartLine, StepLine
from vae.provenance import Attempt
from vae.run_dir import JOBS_DIR, checkpoint_dir, log_path
from vae.study import Study, prepare_study

STUDY = Study("chest", ("linear-s0", "direct-s0"), "smoke")


@pytest.fixture
def study_dir(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs that nobody has launched yet; commands are typed in the folder above runs/."""
    folder = tmp_path / "runs" / "chest"
    prepare_study(folder, STUDY)
    for name in STUDY.runs:
        make_run(folder / name, shards)
    monkeypatch.chdir(tmp_path)
    return folder


def submit(study_dir: Path, fake_slurm: FakeSlurm, kind: JobKind, after: str = "") -> str:
    """Queue an array for both runs, and record it as a launch does."""
    name = f"{study_dir.name}-{kind}"
    job = fake_slurm.submit(name, array="0-1", after=after)
    add_record(study_dir, JobRecord(job, kind, Backend.SLURM, True, (0, 1), "login", name=name))
    return job


def case(study_dir: Path, run: str = "linear-s0") -> Case:
    return gather(study_dir, STUDY, (run,))[0]


def begin(run_dir: Path, step: int) -> None:
    """As if it had trained so far."""
    losses = {"epoch": step / 10, "loss": 5.0, "bce": 4.0, "kl": 1.0, "lr": 1e-3, "images_per_s": 8.0}
    write_lines(run_dir, StartLine(step=0, total_steps=40, steps_per_epoch=10), StepLine(step=step, **losses))


def test_a_run_that_was_never_launched(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    assert case(study_dir) == Case("linear-s0", "runs/chest")
    assert fake_slurm.calls == []


def test_a_queued_run_has_slurms_reason_and_plan(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    job = submit(study_dir, fake_slurm, JobKind.TRAIN)
    fake_slurm.pend(job, "Resources", start=BEGINS)
    queued = case(study_dir)
    assert (queued.job, queued.state, queued.reason) == (f"{job}_0", "PENDING", "Resources")
    assert queued.start in ("16:45", "2026-01-31 16:45")
    assert queued.job not in queued.jobs


def test_a_requeued_run_was_begun(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    job = submit(study_dir, fake_slurm, JobKind.TRAIN)
    fake_slurm.start(job)
    begin(study_dir / "linear-s0", 5)
    write_attempts(study_dir / "linear-s0", Attempt(cluster="slurm", job=f"{job}_0"))
    fake_slurm.requeue(job)
    again = case(study_dir)
    assert (again.reason, again.job in again.jobs, again.was_started) == ("BeginTime", True, True)
    assert "SLURM delays what was requeued; it restarts at " in explain(again)
    other = case(study_dir, "direct-s0")
    assert other.job not in other.jobs


def test_a_running_run_says_how_far_it_is_and_reads_no_log(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    job = submit(study_dir, fake_slurm, JobKind.TRAIN)
    fake_slurm.start(job)
    begin(study_dir / "linear-s0", 5)
    (study_dir / JOBS_DIR / f"{job}_0.log").parent.mkdir(exist_ok=True)
    (study_dir / JOBS_DIR / f"{job}_0.log").write_text("ValueError: of an earlier attempt\n")
    running = case(study_dir)
    assert (running.state, running.progress, running.error) == ("RUNNING", " at step 5 of 40", "")


def test_how_a_run_failed_stands_in_the_accounts_and_in_its_log(
    study_dir: Path, fake_slurm: FakeSlurm
) -> None:
    job = submit(study_dir, fake_slurm, JobKind.TRAIN)
    fake_slurm.start(job)
    fake_slurm.end(f"{job}_0", "FAILED", exit="7:0")
    path = log_path(study_dir / "linear-s0", "train", f"{job}_0-r0", 0)
    path.parent.mkdir()
    path.write_text("data_prep.errors.RunError: loss is nan at step 5.\n")
    (study_dir / JOBS_DIR).mkdir()
    (study_dir / JOBS_DIR / f"{job}_0.log").write_text("srun: error: n1: task 0: Killed\n")
    failed = case(study_dir)
    assert (failed.state, failed.exit) == ("FAILED", "7:0")
    assert (failed.error, failed.notice) == ("RunError: loss is nan at step 5", "n1: task 0: Killed")
    assert failed.was_started
    assert "the training job 1_0 failed: RunError: loss is nan at step 5; fix that" in explain(failed)


@pytest.mark.parametrize("saves", ["a checkpoint", "a stop signal"])
def test_a_cancelled_run_goes_on_from_its_last_save(
    study_dir: Path, fake_slurm: FakeSlurm, saves: str
) -> None:
    """Its event tells of a save that a network disk does not show yet."""
    job = submit(study_dir, fake_slurm, JobKind.TRAIN)
    fake_slurm.start(job)
    begin(study_dir / "linear-s0", 5)
    if saves == "a checkpoint":
        checkpoint_dir(study_dir / "linear-s0", 4).mkdir(parents=True)
    else:
        add_event(study_dir / "linear-s0", StopSignalled(step=4))
    fake_slurm.cancel(f"{job}_0")
    assert "was cancelled at step 5 of 40, saved at step 4; " in explain(case(study_dir))


def test_a_task_cancelled_before_it_began_leaves_no_trace(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    job = submit(study_dir, fake_slurm, JobKind.TRAIN)
    fake_slurm.start(f"{job}_1")
    fake_slurm.cancel(f"{job}_0")
    assert case(study_dir).reason == "before it started"
    fake_slurm.accounts_off()
    assert case(study_dir).reason == "sacct does not answer"
    fake_slurm.controller_down()
    assert case(study_dir).state == "UNKNOWN"


def test_a_trained_run_is_about_its_scores(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    train = submit(study_dir, fake_slurm, JobKind.TRAIN)
    scores = submit(study_dir, fake_slurm, JobKind.EVALUATE, after=f"aftercorr:{train}")
    fake_slurm.start(train)
    waiting = case(study_dir)
    assert (waiting.kind, waiting.job) == (JobKind.TRAIN, f"{train}_0")
    finish(study_dir / "linear-s0")
    due = case(study_dir)
    assert (due.kind, due.job, due.waits_for) == (JobKind.EVALUATE, f"{scores}_0", f"job {train}")
    score(study_dir / "linear-s0")
    assert case(study_dir).is_done
    assert explain(case(study_dir)) == "linear-s0: is trained and scored; nothing to do."


def test_images_that_are_still_to_be_packed(
    study_dir: Path, tmp_path: Path, fake_slurm: FakeSlurm, shards: Path
) -> None:
    data = tmp_path / "shards"
    make_run(study_dir / "spatial-s0", data, variant="spatial")
    study = prepare_study(study_dir, Study("chest", ("spatial-s0",), "smoke"))
    pack = fake_slurm.submit("shards-pack", array="0-1")
    join = fake_slurm.submit("shards-finalize", after=f"afterok:{pack}")
    add_record(data, JobRecord(pack, JobKind.PACK, Backend.SLURM, True, (0, 1), "login"))
    add_record(data, JobRecord(join, JobKind.FINALIZE, Backend.SLURM, False, (0,), "login"))

    def waits_for() -> str:
        return gather(study_dir, study, ("spatial-s0",))[0].waits_for

    (spatial,) = gather(study_dir, study, ("spatial-s0",))
    assert spatial.shards == f"the images in {data} are not packed yet, or were removed"
    assert spatial.waits_for == f"the images to be packed (job {pack}_0: PENDING)"
    fake_slurm.start(pack)
    fake_slurm.end(f"{pack}_0")
    assert waits_for() == f"the images to be packed (job {pack}_1: RUNNING)"
    fake_slurm.end(f"{pack}_1")
    fake_slurm.pend(join, "Priority")
    assert waits_for() == f"the images to be packed (job {join}: PENDING, Priority)"
    fake_slurm.start(join)
    fake_slurm.end(join)
    assert waits_for() == ""


def test_shards_that_are_missing_or_damaged_are_named(tmp_path: Path, shards: Path) -> None:
    assert what_is_wrong_with(shards) == ""
    for path in shards.iterdir():
        (tmp_path / path.name).symlink_to(path)
    lost = tmp_path / "train-00000.h5"
    lost.unlink()
    assert what_is_wrong_with(tmp_path).startswith(f"{lost} has 0 bytes, the manifest says ")
    (tmp_path / "manifest.json").unlink()
    assert what_is_wrong_with(tmp_path) == f"the images in {tmp_path} are not packed yet, or were removed"
    (tmp_path / "manifest.json").write_text("{")
    assert what_is_wrong_with(tmp_path).startswith(f"{tmp_path}/manifest.json is damaged: ")


def test_a_damaged_run_is_said_to_be_damaged_and_others_are_not(
    study_dir: Path, fake_slurm: FakeSlurm
) -> None:
    (study_dir / "linear-s0" / "provenance.json").write_text("{")
    damaged, whole = gather(study_dir, STUDY, STUDY.runs)
    assert "provenance.json is damaged" in damaged.damage
    assert "remove it and launch again" in damaged.fix
    assert whole.damage == ""


def test_on_this_machine_runs_have_their_turn(
    study_dir: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = msgspec.structs.replace(LOCAL, id=str(os.getpid()), host=socket.gethostname())
    add_record(study_dir, own)
    assert case(study_dir).state == "GONE"  # alive, but no job of ours
    monkeypatch.setattr(local, "is_running_here", lambda record: True)
    at_work, next_one = gather(study_dir, STUDY, STUDY.runs)
    assert (at_work.state, at_work.is_local, at_work.job) == ("RUNNING", True, own.id)
    assert "waits for its turn after process " + own.id in explain(next_one)
    assert fake_slurm.calls == []


def test_a_name_that_a_shell_would_split_is_quoted(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    folder = tmp_path / "my runs" / "chest"
    prepare_study(folder, STUDY)
    assert case(folder).study == f"'{folder}'"


def test_times_are_short_if_they_are_today() -> None:
    now = datetime(2026, 1, 31, 12)
    assert clock("2026-01-31T16:45:00", now) == "16:45"
    assert clock("2026-02-01T06:05:00", now) == "2026-02-01 06:05"
    assert [clock(time) for time in ("N/A", "Unknown", "")] == ["", "", ""]


def test_what_a_job_depends_on_is_named_once() -> None:
    assert needed("aftercorr:8_*(unfulfilled),afterok:9,afterany:9") == "job 8, job 9"
    assert needed("afterany:8_1(unfulfilled)") == "job 8_1"
    assert needed("(null)") == ""

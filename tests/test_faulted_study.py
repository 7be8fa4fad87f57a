"""One study under fault injection: when a fault is due, what becomes of it, when it is launched again."""

import time
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from tiny import finish, make_run, write_lines

from data_prep.errors import ClusterError
from slurm.client import QueuedJob, QueueWatch, SlurmRefused
from slurm.drill import faulted_study
from slurm.drill.faulted_study import FaultedStudy, Target, comes_true, launch_with_faults
from slurm.drill.faults import FaultKind, InjectedFault, Injection, Moment, PlannedFault, RunFaults
from slurm.job_records import JobRecord, add_record
from slurm.node.environment import Backend
from slurm.node.task import JobKind
from vae.events import AttemptStarted, add_event
from vae.metrics import StartLine, StepLine
from vae.run_dir import CHECKPOINTS_DIR, DONE_FILE, log_path
from vae.study import Study, prepare_study

JOB = "8_0"


def begin_attempt(run_dir: Path, restart: int) -> None:
    """What array task 8_0 does until it trains."""
    begin_log(run_dir, restart)
    add_event(run_dir, AttemptStarted(step=0, job=JOB, restart=restart))


def begin_log(run_dir: Path, restart: int) -> None:
    path = log_path(run_dir, "train", f"{JOB}-r{restart}", 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def reach(run_dir: Path, step: int) -> None:
    """Be at a step of 100."""
    numbers = {"epoch": 1.0, "loss": 1.0, "bce": 1.0, "kl": 0.0, "lr": 0.1, "images_per_s": 1.0}
    lines = [StartLine(step=0, total_steps=100, steps_per_epoch=10), StepLine(step=step, **numbers)]
    write_lines(run_dir, *lines)


def injected(kind: FaultKind, moment: Moment = Moment.TRAINING, attempts: int = 1) -> InjectedFault:
    return InjectedFault(kind, moment, step=50, attempts=attempts, time=0.0)


def a_target(run_dir: Path, *planned: PlannedFault, attempts: int = 0) -> Target:
    return Target(run_dir, 0, RunFaults(planned), attempts)


# --- when a fault is due -------------------------------------------------------------------------------


def test_a_fault_comes_when_its_step_has_come(tmp_path: Path) -> None:
    target = a_target(tmp_path, PlannedFault(FaultKind.WARNED, share=0.5))
    assert not target.is_due("")
    begin_attempt(tmp_path, 0)
    reach(tmp_path, 10)
    assert not target.is_due(JOB)
    reach(tmp_path, 50)
    assert target.is_due("")  # squeue has not yet shown that it runs
    assert target.job == JOB
    target.note(injected(FaultKind.WARNED))
    target.planned.append(PlannedFault(FaultKind.KILLED, share=0.5))
    assert not target.is_due(JOB)  # this attempt is ending
    assert target.is_running
    begin_attempt(tmp_path, 1)
    assert target.is_due("")


def test_attempts_of_an_earlier_drill_get_no_fault(tmp_path: Path) -> None:
    begin_attempt(tmp_path, 0)
    reach(tmp_path, 50)
    target = a_target(tmp_path, PlannedFault(FaultKind.WARNED), attempts=1)
    assert not target.is_due("")
    begin_attempt(tmp_path, 1)
    target.planned[0] = PlannedFault(FaultKind.WARNED, share=0.5)
    assert target.is_due("")


def test_a_job_is_starting_from_its_first_log_or_squeues_word_on(tmp_path: Path) -> None:
    by_queue = a_target(tmp_path, PlannedFault(FaultKind.WARNED, Moment.STARTING))
    assert not by_queue.is_due("")
    assert by_queue.is_due(JOB)
    begin_log(tmp_path, 0)
    by_log = a_target(tmp_path, PlannedFault(FaultKind.WARNED, Moment.STARTING))
    assert by_log.is_due("")
    assert by_log.job == JOB


def test_a_start_that_was_hit_is_not_hit_again(tmp_path: Path) -> None:
    target = a_target(tmp_path, *[PlannedFault(FaultKind.KILLED, Moment.STARTING)] * 2)
    begin_log(tmp_path, 0)
    assert target.is_due(JOB)
    target.note(injected(FaultKind.KILLED, Moment.STARTING, attempts=0))
    assert not target.is_due(JOB)  # squeue may still show what is just ending
    assert not target.is_due("")
    assert target.is_due(JOB)
    begin_log(tmp_path, 1)
    assert target.is_due("")


def test_only_a_fault_at_the_start_comes_before_the_training(tmp_path: Path) -> None:
    begin_log(tmp_path, 0)
    assert not a_target(tmp_path, PlannedFault(FaultKind.KILLED)).is_due(JOB)
    late = a_target(tmp_path, PlannedFault(FaultKind.WARNED, Moment.STARTING, share=1.0))
    assert not late.is_due(JOB)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulted_study, "SAVE_LIMIT_S", 0.01)
    monkeypatch.setattr(faulted_study, "END_LIMIT_S", 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_save_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    target = a_target(tmp_path, PlannedFault(FaultKind.KILLED, Moment.SAVING))
    assert target.wait_for_moment() is Moment.TRAINING
    (tmp_path / CHECKPOINTS_DIR / ".step_00000010.n1.7.part").mkdir(parents=True)
    assert target.wait_for_moment() is Moment.SAVING


@pytest.mark.usefixtures("impatient")
def test_the_end_has_come_with_the_last_file(tmp_path: Path) -> None:
    target = a_target(tmp_path, PlannedFault(FaultKind.WARNED, Moment.ENDING, 1.0))
    assert target.wait_for_moment() is None
    (tmp_path / DONE_FILE).touch()
    assert target.wait_for_moment() is Moment.ENDING


def test_what_is_true_now_is_not_waited_for() -> None:
    began = time.monotonic()
    assert comes_true(lambda: True, 60)
    assert not comes_true(lambda: False, 0)
    assert time.monotonic() - began < 1


# --- a study -------------------------------------------------------------------------------------------


class Site:
    """A cluster with one array task and a report that waits for it, and what was done to them."""

    def __init__(self, study_dir: Path) -> None:
        self.study_dir, self.run_dir = study_dir, study_dir / "direct-s0"
        self.state = ""
        self.asked = self.launches = 0
        self.injected: list[tuple[FaultKind, str]] = []
        self.answer: bool | SlurmRefused = True
        self.watch = QueueWatch(least_every_s=3600, most_every_s=3600, ask=self.ask)

    def ask(self) -> tuple[QueuedJob, ...]:
        self.asked += 1
        train = QueuedJob(JOB, self.state, "train", "None", "N/A", "")
        report = QueuedJob("9", "PENDING", "report", "Dependency", "N/A", "afterany:8_*(unfulfilled)")
        return (train, report) if self.state else ()

    def launch(self) -> bool:
        self.launches += 1
        if self.launches == 1:
            for job, kind in (("8", JobKind.TRAIN), ("9", JobKind.REPORT)):
                record = JobRecord(job, kind, Backend.SLURM, kind is JobKind.TRAIN, (0,), "login")
                add_record(self.study_dir, record)
        self.state = "RUNNING"
        return True

    def prepare(self, fault: PlannedFault, job: str) -> Injection:
        def inject() -> bool:
            if isinstance(self.answer, SlurmRefused):
                raise self.answer
            self.injected.append((fault.kind, job))
            return self.answer

        return inject

    def drill(self, *planned: PlannedFault) -> FaultedStudy:
        plan = {"direct-s0": RunFaults(planned)}
        return launch_with_faults(self.study_dir, self.launch, self.prepare, self.watch, plan)


@pytest.fixture
def site(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(faulted_study, "LAUNCH_PAUSE_S", 0.0)
    study_dir = tmp_path / "study"
    prepare_study(study_dir, Study("study", ("direct-s0",), extractor="smoke"))
    make_run(study_dir / "direct-s0", shards, variant="direct")
    return Site(study_dir)


def train_until(site: Site, step: int, restart: int = 0) -> None:
    begin_attempt(site.run_dir, restart)
    reach(site.run_dir, step)


def test_a_fault_goes_into_the_job_that_trains_and_is_written_down(site: Site) -> None:
    drill = site.drill(PlannedFault(FaultKind.KILLED, share=0.5))
    assert drill.tick() == []
    train_until(site, 60)
    ((target, fault),) = drill.tick()
    assert site.injected == [(FaultKind.KILLED, JOB)]
    assert (fault.kind, fault.moment, fault.step, fault.attempts) == ("killed", "training", 60, 1)
    assert target.injected == [fault]
    assert drill.tick() == []


def test_a_start_that_has_become_a_training_is_called_so(site: Site) -> None:
    drill = site.drill(PlannedFault(FaultKind.WARNED, Moment.STARTING, share=0.1))
    train_until(site, 60)
    ((_, fault),) = drill.tick()
    assert (fault.moment, fault.attempts) == (Moment.TRAINING, 1)


def test_squeue_is_asked_anew_after_a_fault_and_a_launch_alone(site: Site) -> None:
    drill = site.drill(PlannedFault(FaultKind.SCANCELLED, share=0.5))
    for _ in range(3):
        drill.tick()
    assert site.asked == 1
    train_until(site, 60)
    assert drill.tick()
    site.state = ""  # it has just ended; nobody takes it for running, or fails to launch it again
    drill.tick()
    assert (site.asked, site.launches) == (2, 2)
    for _ in range(3):
        drill.tick()
    assert (site.asked, site.launches) == (3, 2)


def test_a_job_that_was_not_running_is_left_alone_for_a_while(site: Site) -> None:
    drill = site.drill(PlannedFault(FaultKind.KILLED, share=0.5))
    train_until(site, 60)
    site.answer = False
    for _ in range(3):
        assert drill.tick() == []
    assert len(site.injected) == 1
    site.answer = True
    drill.targets[0].not_before_s = 0.0
    assert len(drill.tick()) == 1


def test_a_kind_of_fault_that_the_site_refuses_is_left_out(site: Site) -> None:
    drill = site.drill(
        PlannedFault(FaultKind.REQUEUED, share=0.5),
        PlannedFault(FaultKind.REQUEUED, share=0.6),
        PlannedFault(FaultKind.KILLED, share=0.6),
    )
    train_until(site, 60)
    site.answer = SlurmRefused(["scontrol", "requeue", JOB], "Access/permission denied")
    assert drill.tick() == []
    assert drill.refused == {
        FaultKind.REQUEUED: f"SLURM refused `scontrol requeue {JOB}`: Access/permission denied"
    }
    assert [fault.kind for fault in drill.targets[0].planned] == [FaultKind.KILLED]


def test_a_study_that_does_not_get_done_is_an_error(site: Site) -> None:
    drill = site.drill()
    site.watch.ask = tuple  # nothing is ever queued
    for _ in range(7):
        drill.tick()
    with pytest.raises(ClusterError, match="study was launched 9 times and does not get done"):
        drill.tick()


def test_a_silent_squeue_starts_nothing(site: Site) -> None:
    drill = site.drill()
    site.watch.ask = lambda: None
    site.watch.expire()
    drill.tick()
    assert site.launches == 1
    assert drill.is_busy()


def test_a_study_is_busy_until_its_jobs_are_gone(site: Site) -> None:
    drill = site.drill()
    assert drill.is_busy()
    site.state = ""
    site.watch.expire()
    assert not drill.is_busy()
    assert not drill.is_done


# --- cancels -------------------------------------------------------------------------------------------


def test_what_is_known_of_a_job_is_noted_when_it_is_cancelled(site: Site, fake_slurm: FakeSlurm) -> None:
    for _ in range(8):
        job = fake_slurm.submit("train", array="0")
    fake_slurm.start(job)
    fake_slurm.requeue(job)
    fake_slurm.start(job)
    drill = site.drill(PlannedFault(FaultKind.SCANCELLED, share=0.5))
    train_until(site, 60)
    ((_, fault),) = drill.tick()
    assert (fault.job, fault.restart) == (JOB, 1)


def test_a_cancel_after_a_warning_follows_it(site: Site) -> None:
    drill = site.drill(PlannedFault(FaultKind.SCANCELLED, Moment.WARNED, 0.1))
    train_until(site, 60)
    ((_, fault),) = drill.tick()
    assert site.injected == [(FaultKind.WARNED, JOB), (FaultKind.SCANCELLED, JOB)]
    assert fault.moment is Moment.WARNED


def test_a_fault_during_scoring_waits_for_that_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulted_study, "SCORING_DELAY_S", 0.0)
    drill = site.drill(*[PlannedFault(FaultKind.SCANCELLED, Moment.SCORING, 0.1)] * 2)
    train_until(site, 60)
    assert drill.tick() == []
    finish(site.run_dir)
    assert drill.tick() == []
    for restart in (0, 1):
        log_path(site.run_dir, "evaluate", f"9_0-r{restart}", 0).touch()
        assert [fault.job for _, fault in drill.tick()] == ["9_0"]
        assert drill.tick() == []  # that start is over
    assert drill.targets[0].faults().planned == ()


def test_a_users_cancel_goes_through_the_toolkits_own(site: Site, fake_slurm: FakeSlurm) -> None:
    for _ in range(8):
        job = fake_slurm.submit("train", array="0")
    fake_slurm.start(job)
    drill = site.drill(PlannedFault(FaultKind.CANCELLED, share=0.5))
    train_until(site, 60)
    ((_, fault),) = drill.tick()
    assert (fault.kind, fault.job, fault.restart) == (FaultKind.CANCELLED, JOB, 0)
    assert fake_slurm.jobs[JOB].state == "CANCELLED"
    assert site.injected == []

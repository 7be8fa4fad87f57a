"""slurm/diagnose/follow.py: the progress messages for someone who waits."""

import logging
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from tiny import finish, score, write_lines

from slurm.diagnose.follow import POLL_S, LocalFollower, follow_jobs, follow_log, print_new
from slurm.diagnose.log_files import AttemptLogs
from slurm.job_records import JobRecord, add_record
from slurm.node.environment import Backend
from slurm.node.task import EvaluateTask, JobKind, TrainTask
from slurm.plan import JobRequest
from vae.metrics import StartLine, StepLine
from vae.run_dir import LOGS_DIR, log_path
from vae.study import Study, prepare_study

STUDY = Study("chest", ("linear-s0", "direct-s0"), "smoke")


def step(number: int, loss: float, images_per_s: float, time: float) -> StepLine:
    return StepLine(
        step=number, time=time, epoch=0.0, loss=loss, bce=0.0, kl=0.0, lr=0.0, images_per_s=images_per_s
    )


def test_a_local_training_tells_loss_speed_and_time_left_once_an_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "linear-s0"
    request = JobRequest("train", JobKind.TRAIN, tmp_path, {0: TrainTask(str(run_dir))})
    start = StartLine(step=0, total_steps=3000, steps_per_epoch=100)
    first, second = step(100, 31234.5, 64.2, 100), step(200, 29000.25, 65.0, 200)
    follow = LocalFollower()
    with caplog.at_level(logging.INFO, "slurm.diagnose.follow"):
        follow(request, 0)
        write_lines(run_dir, start, first)
        follow(request, 0)
        write_lines(run_dir, start, first, second)
        follow(request, 0)
        follow(request, 0)
        follow(JobRequest("evaluate", JobKind.EVALUATE, tmp_path, {0: EvaluateTask(str(run_dir))}), 0)
    assert caplog.messages == [
        "train linear-s0 begins",
        "train linear-s0: epoch 1, step 100 of 3,000, loss 31,234.5 nats/image, 64 images/s",
        "train linear-s0: epoch 2, step 200 of 3,000, loss 29,000.2 nats/image, 65 images/s, 47 min left",
        "evaluate linear-s0 begins",
    ]


# --- on SLURM, whose hours pass in no time -------------------------------------------------------


@pytest.fixture
def study_dir(tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two runs that are trained, scored and reported by jobs 1, 2 and 3."""
    fake_slurm.take_over_time(monkeypatch)
    folder = tmp_path / "chest"
    prepare_study(folder, STUDY)
    jobs = ((JobKind.TRAIN, "0-1", ""), (JobKind.EVALUATE, "0-1", "aftercorr:1"), (JobKind.REPORT, "", ""))
    for kind, array, after in jobs:
        job = fake_slurm.submit(f"chest-{kind}", array, after or ("afterany:2" if not array else ""))
        indices = (0, 1) if array else (0,)
        add_record(
            folder, JobRecord(job, kind, Backend.SLURM, bool(array), indices, "login", name=f"chest-{kind}")
        )
    return folder


def test_every_change_is_logged_and_squeue_asked_seldom(
    study_dir: Path, fake_slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    fake_slurm.at(100, lambda: fake_slurm.start("1"))
    fake_slurm.at(3700, lambda: (finish(study_dir / "linear-s0"), fake_slurm.end("1_0")))
    fake_slurm.at(3900, lambda: fake_slurm.end("1_1", "OUT_OF_MEMORY"))
    fake_slurm.at(4000, lambda: fake_slurm.cancel("2_1"))
    fake_slurm.at(4100, lambda: fake_slurm.start("2_0"))
    fake_slurm.at(5000, lambda: (score(study_dir / "linear-s0"), fake_slurm.end("2_0")))
    fake_slurm.at(5001, lambda: fake_slurm.start("3"))
    fake_slurm.at(5060, lambda: fake_slurm.end("3"))
    with caplog.at_level(logging.INFO, "slurm.diagnose.follow"):
        follow_jobs(study_dir, STUDY)
    assert 5060 <= fake_slurm.now_s <= 5060 + 60 + POLL_S
    assert [message for message in caplog.messages if message.startswith("linear")] == [
        "linear-s0: queued",
        "linear-s0: training",
        "linear-s0: trained (Dependency)",
        "linear-s0: scoring",
        "linear-s0: done",
    ]
    assert [message for message in caplog.messages if message.startswith("direct")] == [
        "direct-s0: queued",
        "direct-s0: training",
        "direct-s0: failed (train OUT_OF_MEMORY)",
    ]
    assert fake_slurm.asked("squeue") < 5060 / 60 + 8 * 3
    assert fake_slurm.asked("sacct") < 10


def test_what_can_never_start_is_not_waited_for(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.at(10, lambda: fake_slurm.start("1_0"))
    fake_slurm.at(20, lambda: fake_slurm.end("1_0", "FAILED"))
    fake_slurm.at(30, lambda: (fake_slurm.cancel("1_1"), fake_slurm.cancel("3")))
    follow_jobs(study_dir, STUDY)
    left = {job.id for job in fake_slurm.jobs.values() if job.is_queued}
    assert left == {"2_0", "2_1"}  # DependencyNeverSatisfied


def test_a_silent_squeue_is_no_end(study_dir: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.controller_down()
    fake_slurm.at(600, fake_slurm.controller_up)
    fake_slurm.at(600, lambda: [fake_slurm.cancel(job) for job in ("3", "2", "1")])
    follow_jobs(study_dir, STUDY)
    assert fake_slurm.now_s >= 600


def test_a_log_is_followed_from_attempt_to_attempt(
    study_dir: Path,
    fake_slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_dir = study_dir / "linear-s0"

    def write(restart: int, text: str, kind: str = "train", job: str = "1_0") -> None:
        (run_dir / LOGS_DIR).mkdir(parents=True, exist_ok=True)
        with log_path(run_dir, kind, f"{job}-r{restart}", 0).open("a") as file:
            file.write(text)

    fake_slurm.at(100, lambda: (fake_slurm.start("1_0"), write(0, "step 1\n")))
    fake_slurm.at(200, lambda: write(0, "step 2\n"))
    fake_slurm.at(300, lambda: (write(0, "stopped\n"), fake_slurm.requeue("1_0")))
    fake_slurm.at(420, lambda: (fake_slurm.start("1_0"), write(1, "step 3\n")))
    fake_slurm.at(500, lambda: (write(1, "done\n"), finish(run_dir), fake_slurm.end("1_0")))
    fake_slurm.at(600, lambda: (fake_slurm.start("2_0"), write(0, "scores\n", "evaluate", "2_0")))
    fake_slurm.at(700, lambda: (score(run_dir), fake_slurm.end("2_0")))
    with caplog.at_level(logging.INFO, "slurm.diagnose.follow"):
        follow_log(study_dir, STUDY, "linear-s0", 0)
    assert capsys.readouterr().out == "step 1\nstep 2\nstopped\nstep 3\ndone\nscores\n"
    labels = [message.partition(":")[0] for message in caplog.messages]
    assert labels == [
        "--- train, job 1_0",
        "--- train, job 1_0, restart 1",
        "--- evaluate, job 2_0",
        "linear-s0",
    ]
    assert caplog.messages[-1] == "linear-s0: is trained and scored; nothing to do."
    assert fake_slurm.now_s <= 700 + 3 * POLL_S  # files say that it is done
    assert fake_slurm.asked("squeue") < 700 / 10
    assert fake_slurm.asked("sacct") < 10


def test_a_log_is_read_on_from_where_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, positions = tmp_path / "train-8_0-r1-rank0.log", dict[Path, int]()
    path.write_text("attempt 1\nrank 0\n")
    attempts = [AttemptLogs(JobKind.TRAIN, "8_0", 1, {0: path})]
    print_new(attempts, 0, positions)
    assert capsys.readouterr().out == "attempt 1\nrank 0\n"
    position = positions[path]
    with path.open("ab") as file:
        file.write(b"more\xff")
    print_new(attempts, 0, positions)
    assert (capsys.readouterr().out, positions[path]) == ("more\ufffd", position + 5)


def test_following_a_run_that_fails_ends_with_why(
    study_dir: Path, fake_slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    fake_slurm.at(100, lambda: fake_slurm.start("1_0"))
    fake_slurm.at(200, lambda: (fake_slurm.accounts_lag(), fake_slurm.end("1_0", "NODE_FAIL")))
    fake_slurm.at(203, fake_slurm.accounts_catch_up)
    with caplog.at_level(logging.INFO, "slurm.diagnose.follow"):
        follow_log(study_dir, STUDY, "linear-s0", 0)
    assert caplog.messages[-1].startswith("linear-s0: the training job 1_0 lost its node; run the same")

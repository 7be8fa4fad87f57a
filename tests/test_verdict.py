"""The verdict on an interrupted run: what the trainer really writes passes, damaged stories do not."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import msgspec
import pytest
from devcluster import wait_for
from tiny import make_run
from warm import start_process

from slurm.drill.faults import FaultKind, InjectedFault, Moment
from slurm.drill.verdict import (
    Restart,
    describe,
    judge_cancels,
    judge_end,
    judge_restarts,
    judge_run,
    judge_study,
    read_restarts,
)
from slurm.node.task import TrainTask
from vae.config import RunConfig, write_settings
from vae.events import AttemptStarted, Completed, Course, Saved, StopSignalled, add_event
from vae.metrics import read_progress
from vae.provenance import read_attempts
from vae.run_dir import EVENTS_FILE, METRICS_FILE, PROVENANCE_FILE, RUN_FILE, log_path
from vae.study import Study, prepare_study
from vae.training.trainer import train

STEPS = 400
JOB = "7_0"


# --- what the trainer really wrote ---------------------------------------------------------------------


def start_attempt(run_dir: Path, restart: int, index: int = 0) -> ForkServerProcess:
    """One start of array task 7_0 or 7_1, as SLURM would make it; SLURM itself is out of reach."""
    place = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(index)}
    place |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURMD_NODENAME": "n1"}
    place |= {"SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": str(restart)}
    place |= {"SLURM_CONF": "/dev/null", "SUBMITIT_FOLDER": str(run_dir.parent)}
    return start_process(TrainTask(str(run_dir)), variables=place)


def interrupt(run_dir: Path, restart: int, at_step: int, kind: FaultKind, number: int) -> InjectedFault:
    """Run one attempt until it has passed a step, send it a signal, and wait for its end."""
    process = start_attempt(run_dir, restart)
    wait_for(lambda: has_passed(run_dir, restart, at_step), 60, lambda: f"no step after {at_step}")
    fault = InjectedFault(
        kind, Moment.TRAINING, step=read_progress(run_dir).step, attempts=restart + 1, time=time.time()
    )
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    return fault


def has_passed(run_dir: Path, restart: int, step: int) -> bool:
    return len(read_attempts(run_dir)) == restart + 1 and read_progress(run_dir).step > step


@dataclass(frozen=True)
class Story:
    """A run that was warned, then killed without a warning, then finished; and its unbroken twin."""

    run_dir: Path
    unbroken: Path
    warned: InjectedFault
    killed: InjectedFault

    def judge(self, *faults: InjectedFault, run_dir: Path | None = None) -> list[str]:
        return judge_run(run_dir or self.run_dir, faults, self.unbroken)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Story:
    """What runs inside real jobs, one after another."""
    study_dir = tmp_path_factory.mktemp("story")
    prepare_study(study_dir, Study("story", ("direct-s0", "unbroken"), extractor="smoke"))
    settings = {"variant": "direct", "epochs": 10_000, "max_steps": STEPS, "checkpoint_every_min": 0.002}
    run_dir, unbroken = (make_run(study_dir / name, shards, **settings) for name in ("direct-s0", "unbroken"))
    twin = start_attempt(unbroken, 0, index=1)
    warned = interrupt(run_dir, 0, STEPS // 4, FaultKind.WARNED, signal.SIGUSR2)
    killed = interrupt(run_dir, 1, STEPS // 2, FaultKind.KILLED, signal.SIGKILL)
    last = start_attempt(run_dir, 2)
    for process in (last, twin):
        process.join(60)
        assert process.exitcode == 0
    return Story(run_dir, unbroken, warned, killed)


@pytest.mark.slow
def test_what_the_trainer_really_wrote_passes(story: Story) -> None:
    warned, killed = story.warned, story.killed
    assert story.judge(warned, killed) == []
    after_warning, after_kill = restarts = read_restarts(story.run_dir, [warned, killed])
    assert (after_warning.faults, after_kill.faults) == ((warned,), (killed,))
    assert after_warning.before.was_signalled
    assert after_warning.lost_steps == 0
    assert after_warning.after.step >= warned.step
    assert after_kill.stopped_at >= killed.step > STEPS // 2
    assert describe(warned, restarts).endswith(", nothing lost")
    assert describe(killed, restarts).startswith(f"killed while training, at step {killed.step}: resumed at")


# --- the same story, damaged ---------------------------------------------------------------------------


def edit_lines(path: Path, edit: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(f"{line}\n" for line in edit(path.read_text().splitlines())))


def starts_in(lines: list[str]) -> list[int]:
    return [number for number, line in enumerate(lines) if '"attempt"' in line]


def lose_second_start(lines: list[str]) -> list[str]:
    del lines[starts_in(lines)[1]]
    return lines


def reword_second_start(lines: list[str]) -> list[str]:
    number = starts_in(lines)[1]
    lines[number] = lines[number].replace('"attempt"', '"begin"')
    return lines


def resume_earlier(lines: list[str]) -> list[str]:
    number = starts_in(lines)[1]
    start = json.loads(lines[number])
    lines[number] = json.dumps({**start, "step": start["step"] - 5})
    return lines


def change_provenance(run_dir: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    path = run_dir / PROVENANCE_FILE
    content = json.loads(path.read_text())
    change(content["attempts"])
    path.write_text(json.dumps(content))


def resumed_earlier_everywhere(run_dir: Path) -> None:
    """The second attempt went on 5 steps before the one at which the first, warned, had saved."""
    edit_lines(run_dir / EVENTS_FILE, resume_earlier)
    change_provenance(run_dir, lambda rows: rows[1].update(from_step=rows[1]["from_step"] - 5))  # type: ignore[operator]


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no events": (
        lambda run_dir: (run_dir / EVENTS_FILE).unlink(),
        "events.jsonl does not begin with the start of an attempt",
    ),
    "an attempt less in events": (
        lambda run_dir: edit_lines(run_dir / EVENTS_FILE, lose_second_start),
        "2 attempts in events.jsonl, 3 in provenance.json",
    ),
    "the first start less": (
        lambda run_dir: edit_lines(run_dir / EVENTS_FILE, lambda lines: lines[1:]),
        "events.jsonl does not begin with the start of an attempt",
    ),
    "a start in other words": (
        lambda run_dir: edit_lines(run_dir / EVENTS_FILE, reword_second_start),
        "is damaged",
    ),
    "half a line": (
        lambda run_dir: edit_lines(run_dir / EVENTS_FILE, lambda lines: [lines[0][:20], *lines[1:]]),
        "events.jsonl, line 1, is damaged",
    ),
    "no end": (
        lambda run_dir: edit_lines(run_dir / EVENTS_FILE, lambda lines: lines[:-1]),
        f"complete at step {STEPS}, but that is not the last of its events",
    ),
    "an attempt less in provenance": (
        lambda run_dir: change_provenance(run_dir, lambda rows: rows.pop(1)),
        "3 attempts in events.jsonl, 2 in provenance.json",
    ),
    "another job in provenance": (
        lambda run_dir: change_provenance(run_dir, lambda rows: rows[2].update(job="9_0")),
        "attempt 3 (job 9_0, restart 2) is another in events.jsonl than in provenance.json",
    ),
    "other restarts in provenance": (
        lambda run_dir: change_provenance(run_dir, lambda rows: rows.insert(1, rows.pop(2))),
        "attempt 2 (job 7_0, restart 2) is another in events.jsonl than in provenance.json",
    ),
    "damaged provenance": (
        lambda run_dir: (run_dir / PROVENANCE_FILE).write_text("{"),
        "provenance.json is damaged",
    ),
    "a log less": (
        lambda run_dir: log_path(run_dir, "train", f"{JOB}-r1", 0).unlink(),
        "attempt 2 (job 7_0, restart 1) has left no log",
    ),
    "5 steps redone after a warning": (resumed_earlier_everywhere, "5 steps redone in spite of a warning"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_story_is_a_problem(story: Story, tmp_path: Path, damage: str) -> None:
    run_dir = tmp_path / "direct-s0"
    shutil.copytree(story.run_dir, run_dir)
    change, problem = DAMAGES[damage]
    change(run_dir)
    assert problem in "\n".join(story.judge(story.warned, story.killed, run_dir=run_dir))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attempts": 4}, "attempt 4 is not in events.jsonl"),
        ({"attempts": 0}, "attempt 0 is not in events.jsonl"),
        ({"attempts": 1}, "attempt 1 had ended before"),
        ({"attempts": 3, "time": 0.0}, "attempt 3 went on"),
    ],
)
def test_a_fault_that_ended_no_attempt_is_a_problem(
    story: Story, changes: dict[str, float], problem: str
) -> None:
    fault = msgspec.structs.replace(story.killed, **changes)
    first_problem = story.judge(story.warned, fault)[0]
    assert first_problem == f"direct-s0: killed while training, at step {fault.step}: {problem}"


@pytest.mark.slow
def test_a_fault_that_need_not_end_an_attempt_is_none(story: Story) -> None:
    for changes in (
        {"kind": FaultKind.LAUNCHER_KILLED},
        {"moment": Moment.ENDING},
        {"moment": Moment.BESIDE},
        {"time": time.time()},  # the run was done before it could arrive
    ):
        late = msgspec.structs.replace(story.killed, attempts=3, **{"time": 0.0, **changes})
        assert story.judge(story.warned, story.killed, late) == []


# --- what was lost -------------------------------------------------------------------------------------


def a_fault(kind: FaultKind, moment: Moment = Moment.TRAINING, step: int = 100) -> InjectedFault:
    return InjectedFault(kind, moment, step=step, attempts=1, time=4.0)


def a_restart(*faults: InjectedFault, lost: int = 0, lost_s: float = 0.0, saved: int = 0) -> Restart:
    saves = (Saved(step=saved, seconds=0.1),) if saved else ()
    after = AttemptStarted(step=100 - lost, reached_step=100, redone_s=lost_s, time=9.0)
    return Restart(Course(AttemptStarted(step=0, time=0.0), saves), after, faults)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that is saved every 10 s."""
    write_settings(RunConfig(data="nowhere", checkpoint_every_min=1 / 6), tmp_path / RUN_FILE)
    return tmp_path


@pytest.mark.parametrize("kind", [FaultKind.CANCELLED, FaultKind.SCANCELLED])
@pytest.mark.parametrize("witness", ["train", "evaluate", "events"])
def test_a_job_that_comes_back_after_a_cancel_is_a_problem(
    tmp_path: Path, kind: FaultKind, witness: str
) -> None:
    fault = msgspec.structs.replace(a_fault(kind), job=JOB, restart=1)
    before = [Course(AttemptStarted(step=0, job=JOB, restart=1), [])]
    assert judge_cancels(tmp_path, before, [fault]) == []
    again = AttemptStarted(step=5, job=JOB, restart=2)
    if witness != "events":
        path = log_path(tmp_path, witness, f"{JOB}-r2", 0)
        path.parent.mkdir()
        path.touch()
    courses = [*before, Course(again, [])] if witness == "events" else before
    assert judge_cancels(tmp_path, courses, [fault]) == [f"{fault}, at step 100: job {JOB} has come back"]
    assert judge_cancels(tmp_path, courses, [msgspec.structs.replace(fault, kind=FaultKind.WARNED)]) == []


def test_a_cancel_of_which_nobody_knows_what_it_hit_is_a_problem(tmp_path: Path) -> None:
    fault = a_fault(FaultKind.SCANCELLED)
    for hit in (fault, msgspec.structs.replace(fault, job=JOB), msgspec.structs.replace(fault, restart=0)):
        (problem,) = judge_cancels(tmp_path, [], [hit])
        assert problem.endswith("which start of which job was cancelled is unknown")


def test_a_warning_may_cost_nothing_and_a_kill_the_checkpoint_interval(run_dir: Path) -> None:
    warned, killed = a_fault(FaultKind.WARNED), a_fault(FaultKind.KILLED)

    def judge(*restarts: Restart) -> list[str]:
        return judge_restarts(run_dir, restarts)

    assert not judge(a_restart(warned), a_restart(killed, lost=50, lost_s=9.0))
    assert "in spite of a warning" in judge(a_restart(warned, lost=1))[0]
    assert "stopped by its scheduler" in judge(a_restart(lost=1))[0]
    assert "20.0 s; allowed: 10.0 s" in judge(a_restart(killed, lost=99, lost_s=20.0))[0]
    assert not judge(a_restart(warned, killed, lost=50, lost_s=9.0))
    early = a_fault(FaultKind.KILLED, Moment.STARTING, step=0)  # had nothing to lose, so it excuses nothing
    assert judge(a_restart(warned, early, lost=1))


def test_a_save_that_was_not_gone_on_from_is_a_problem(run_dir: Path) -> None:
    killed = a_fault(FaultKind.KILLED)
    assert not judge_restarts(run_dir, [a_restart(killed, lost=50, saved=50)])
    (problem,) = judge_restarts(run_dir, [a_restart(killed, lost=50, saved=60)])
    assert problem.endswith("50 steps redone, though step 60 was saved")


def test_steps_count_as_trained_if_any_event_tells_of_them(run_dir: Path) -> None:
    for event in (
        AttemptStarted(step=0),
        Saved(step=30, seconds=0.1),
        StopSignalled(step=30),
        AttemptStarted(step=25, reached_step=10),
        Completed(step=40),
    ):
        add_event(run_dir, event)
    (restart,) = read_restarts(run_dir, [])
    assert (restart.stopped_at, restart.lost_steps) == (30, 5)


def test_an_interruption_is_told_in_one_line() -> None:
    killed = a_fault(FaultKind.KILLED, step=30)
    restart = a_restart(killed, lost=20, lost_s=1.5)
    line = "killed while training, at step 30"
    assert describe(killed, [restart]) == f"{line}: resumed at step 80 after 5 s, 20 steps redone"
    assert describe(killed, []) == f"{line}: no restart was needed"


# --- the end -------------------------------------------------------------------------------------------


def test_another_end_than_the_unbroken_runs_is_told(tmp_path: Path, shards: Path) -> None:
    left, right, other = (
        make_run(tmp_path / name, shards, variant="direct", seed=seed)
        for name, seed in (("left", 0), ("right", 0), ("other", 1))
    )
    steps = iter(range(4))
    train(left, lambda: next(steps, None) is None)  # stopped in the middle
    for run in (left, right, other):
        train(run)
    assert judge_end(left, right) == []
    differs, weights = judge_end(other, right)
    assert differs.startswith("losses differ by")
    assert weights == "the weights differ"
    edit_lines(right / METRICS_FILE, lambda lines: lines[:3])
    assert "logged steps, the unbroken run has 2" in judge_end(left, right)[0]
    (right / METRICS_FILE).unlink()
    assert judge_end(right, right) == ["0 logged steps, the unbroken run has 0"]


def test_what_is_missing_or_left_behind_is_told(scored_study: Path, tmp_path: Path) -> None:
    assert judge_study(scored_study) == ["linear-s1 is not trained", "direct-s1 is not trained"]
    (tmp_path / "study.yaml").write_text((scored_study / "study.yaml").read_text())
    (tmp_path / "linear-s0").mkdir()
    (tmp_path / "linear-s0" / ".rendezvous-7-r0.json").touch()
    assert judge_study(tmp_path)[-1] == "linear-s0/.rendezvous-7-r0.json is left behind"

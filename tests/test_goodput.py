"""Where the time of a run went: numbers known on paper, and a real run that was stopped and killed."""

import math
import signal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tiny import make_run
from warm import start_process, train_until_killed

from vae.events import AttemptStarted, Saved, StopSignalled, read_events
from vae.goodput import (
    CPU_RESERVE,
    MEMORY_RESERVE,
    Account,
    AttemptSpent,
    Spent,
    account,
    attempts_spent,
    count_kills,
    goodput,
    interval_s,
    limit_min,
    need_s,
    suggestions,
    to_ask_for,
    total,
)
from vae.metrics import EpochLine, SaveLine, StartLine, StepLine, read_metrics
from vae.provenance import Attempt, Work, read_attempts, work_of
from vae.training.trainer import train

# Two attempts on 2 GPUs. The first waits 60 s once its dependency is met, starts for 20 s and takes 30 steps
# in 60 s, of which 20 survive; the second, requeued at 250 s and held until 290 s, waits 50 s and takes 50
# steps in 100 s.
GPUS: dict[str, Any] = {"device": "cuda", "world_size": 2}
FIRST = Attempt(
    **GPUS,
    submitted_s=0.0,
    eligible_s=100.0,
    allocated_s=160.0,
    started_s=165.0,
    from_step=0,
    work=Work(reached_step=30, last_s=250.0, train_s=60.0, save_s=6.0, saves=2, val_s=4.0),
)
SECOND = Attempt(
    **GPUS,
    restart=1,
    submitted_s=250.0,
    eligible_s=290.0,
    allocated_s=300.0,
    started_s=305.0,
    from_step=20,
    work=Work(reached_step=70, last_s=420.0, train_s=100.0, save_s=8.0, saves=2, val_s=2.0),
)


def step(number: int, time: float) -> StepLine:
    zeros = {"epoch": 0.0, "loss": 0.0, "bce": 0.0, "kl": 0.0, "lr": 0.0, "images_per_s": 0.0}
    return StepLine(step=number, time=time, **zeros)


def epoch(number: int, time: float, val_seconds: float) -> EpochLine:
    losses = {"train_loss": 0.0, "train_bce": 0.0, "train_kl": 0.0}
    return EpochLine(step=number, time=time, epoch=1, val_seconds=val_seconds, **losses)


LINES = [
    StartLine(step=0, time=100.0, total_steps=40, steps_per_epoch=10),
    step(10, 110.0),
    epoch(10, 113.0, 3.0),
    SaveLine(step=10, time=115.0, seconds=2.0, train_s=10.0, save_s=2.0, saves=1, val_s=3.0),
    step(20, 126.0),
    epoch(20, 130.0, 4.0),
    step(22, 132.0),
]


def test_time_is_told_apart_by_what_became_of_it() -> None:
    first, second = (attempt.spent for attempt in attempts_spent([FIRST, SECOND], []) if attempt)
    assert first == Spent(60, 20, 40, 20, 6, 4, gpu_hours=2 * 90 / 3600)
    assert second == Spent(50, 10, 100, 0, 8, 2, gpu_hours=2 * 120 / 3600)
    both = total([first, second])
    assert (both.allocated_s, both.wait_s) == (210, 110)
    assert both.goodput == goodput([FIRST, SECOND], []) == 140 / 210


def test_going_back_behind_an_attempt_loses_the_steps_of_all_before() -> None:
    """The newest checkpoint was damaged: the third attempt begins at step 10."""
    first, second, third = attempts_spent([FIRST, SECOND, Attempt(from_step=10, started_s=500.0)], [])
    assert first is not None
    assert second is not None
    assert (first.steps_lost, second.steps_lost, third) == (20, 50, None)
    assert (first.spent.useful_s, first.spent.lost_s) == (20, 40)


def test_what_is_not_known_is_not_made_up() -> None:
    """Without a scheduler: no wait, and time counts from the call; without a GPU: core-hours if known."""
    by_hand = replace(FIRST, device="cpu", submitted_s=None, eligible_s=None, allocated_s=None)
    (cpu,) = attempts_spent([by_hand], [])
    assert cpu is not None
    assert (cpu.spent.wait_s, cpu.spent.startup_s, cpu.spent.cpu_hours) == (None, 15, None)
    assert total([cpu.spent, Spent()]).wait_s is None
    (cpus,) = attempts_spent([replace(by_hand, cpus=4)], [])
    assert cpus is not None
    assert (cpus.spent.cpu_hours, cpus.spent.gpu_hours) == (2 * 4 * 85 / 3600, 0)  # two ranks with 4 each
    assert attempts_spent([Attempt(from_step=0)], LINES) == [None]  # by a version that noted no times
    assert goodput([], []) is None


def test_an_attempt_is_read_from_the_end_of_its_lines() -> None:
    """20 s until step 22 is what is left of 32 s after 5 s up to the save's end and 7 s of validation."""
    whole, until_save = work_of(LINES), work_of(LINES[:3])
    assert whole is not None
    assert until_save is not None
    assert (whole.reached_step, whole.train_s, whole.save_s, whole.saves, whole.val_s) == (
        22,
        23.0,
        2.0,
        1,
        7.0,
    )
    assert work_of(LINES[3:]) == whole
    beside = work_of([step(30, 114.0), replace(LINES[3], beside_s=1.0)])  # written while steps went on
    assert beside is not None
    assert (beside.reached_step, beside.train_s) == (30, 10.0)
    assert until_save.train_s == 10.0
    assert work_of(LINES[4:]) is None
    assert work_of([SaveLine(step=10, time=115.0, seconds=2.0)]) is None  # by a version that noted no sums


def test_lines_older_than_the_attempt_are_not_its_own() -> None:
    fresh = Attempt(**GPUS, from_step=10, started_s=140.0)
    assert attempts_spent([fresh], LINES) == [None]
    (own,) = attempts_spent([replace(fresh, started_s=95.0, from_step=0)], LINES)
    assert own is not None
    assert own.spent == Spent(None, 5, 23, 0, 2, 7, gpu_hours=2 * 37 / 3600)


def test_attempts_that_were_killed_are_those_that_neither_stopped_nor_ended() -> None:
    began = [AttemptStarted(step=0), AttemptStarted(step=20)]
    stopped = [began[0], StopSignalled(step=20), began[1]]
    assert count_kills([FIRST, SECOND], stopped) == 0
    assert count_kills([FIRST, SECOND], [began[0], Saved(step=20, seconds=1.0), began[1]]) == 1
    assert count_kills([FIRST, SECOND], began[1:]) is None  # older code had begun the run


# --- suggestions -----------------------------------------------------------------------------


WORK = Work(reached_step=100, last_s=300, train_s=200, save_s=24, saves=4, val_s=16)


def attempt(world_size: int = 2, **changes: Any) -> AttemptSpent:
    """100 steps in 200 s and 40 s of saving and validating, after 60 s of start-up."""
    spent = Spent(startup_s=60, useful_s=200, save_s=24, val_s=16)
    facts = {"spent": spent, "steps": 100, "steps_lost": 0, "work": WORK}
    return AttemptSpent(**{"record": Attempt(device="cuda", world_size=world_size), **facts, **changes})


def test_limits_have_reserve_and_whole_quarters() -> None:
    assert [limit_min(seconds) for seconds in (1, 750, 751, 3600)] == [15, 15, 30, 75]
    assert [to_ask_for(cores, CPU_RESERVE) for cores in (0.1, 1.6, 3.5)] == [1, 2, 5]
    assert [to_ask_for(peak_gb, MEMORY_RESERVE) for peak_gb in (0.2, 1.5, 3.2)] == [1, 2, 5]


def test_time_left_follows_the_pace_on_these_processes() -> None:
    """2.4 s a step with saves and validations; the first attempt, on one process, tells nothing."""
    slow = attempt(world_size=1, spent=Spent(useful_s=9000))
    assert need_s(Account("a", (slow, attempt()), 1000, 900), 900) == pytest.approx(60 + 900 * 2.4)
    assert need_s(Account("a", (attempt(steps=0, spent=Spent()),), 1000, 1000), 1000) is None


def test_suggestions_name_the_setting_and_the_reason() -> None:
    work = replace(WORK, cores=1.5, host_gb=2.0, gpu_gb=1.0)
    left = Account("a", (attempt(work=work),), 1000, 900, scoring_gb=3.0)  # needs 37 min
    done = Account("b", (attempt(),), 90_000, 0)
    limit, cpus, memory = suggestions([done, left])
    assert "still needs about 37 min" in limit
    assert "train_limit_min 45 " in limit
    assert "kept 1.5 CPU cores" in cpus
    assert "cpus_per_gpu 2 " in cpus
    assert "up to 2 GiB of memory and a scoring process 3 GiB: mem_per_gpu_gb 4 " in memory
    assert "takes about 2 d 12 h" in suggestions([done])[0]


def test_missing_facts_give_no_suggestion() -> None:
    assert suggestions([]) == []
    assert suggestions([Account("a", (), 100, 100)]) == []
    assert suggestions([Account("a", (attempt(spent=Spent(useful_s=59)),), 100, 0)]) == []
    unscored = Account("a", (attempt(work=replace(WORK, host_gb=2.0)),), 100, 0)
    assert not any("mem_per_gpu_gb" in sentence for sentence in suggestions([unscored]))


def test_saves_are_spaced_by_youngs_formula_only_after_losses() -> None:
    """Saves of 6 s, one loss in 300 s of one run and none in 300 s of the other: sqrt(2 x 6 x 600) s."""
    assert interval_s(6, 600) == pytest.approx(84.85, abs=0.01)
    spent = Spent(startup_s=60, useful_s=150, lost_s=50, save_s=24, val_s=16)
    runs = [Account("a", (attempt(spent=spent, steps_lost=25),), 100, 0), Account("b", (attempt(),), 100, 0)]
    sentence = suggestions(runs)[-1]
    assert "without a warning: 1; they cost 50 s" in sentence
    assert "--run.checkpoint_every_min 1.4 " in sentence
    assert not any("checkpoint_every_min" in text for text in suggestions(runs[1:]))


# --- a real run ------------------------------------------------------------------------------


def test_a_run_that_was_stopped_and_killed_accounts_for_every_step(tmp_path: Path, shards: Path) -> None:
    """Stopped after step 5, killed in step 14 with step 8 saved (an epoch's end), then brought to its end."""
    run_dir = make_run(tmp_path / "run", shards, checkpoint_every_min=1000)
    stop = iter([False] * 4 + [True])
    assert train(run_dir, should_stop=lambda: next(stop)) is False
    child = start_process(train_until_killed, run_dir, 9, 8)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    killed = read_metrics(run_dir)
    assert train(run_dir) is True

    attempts, lines = read_attempts(run_dir), read_metrics(run_dir)
    run = account("run", attempts, lines, is_done=True, events=read_events(run_dir))
    first, second, third = run.attempts
    counts = [(spent.record.from_step, spent.steps, spent.steps_lost) for spent in run.attempts]
    assert counts == [
        (0, 5, 0),
        (5, 9, 6),
        (8, 16, 0),
    ]
    assert (run.total_steps, run.steps_left, run.kills) == (24, 0, 1)
    assert first.spent.lost_s == third.spent.lost_s == 0
    assert second.spent.lost_s == pytest.approx(2 * second.spent.useful_s)  # 6 steps of 9

    # the second attempt's sums are those of the lines it left, which are gone from the file
    start = max(number for number, line in enumerate(killed) if isinstance(line, StartLine))
    own = killed[start:]
    saved = sum(line.seconds for line in own if isinstance(line, SaveLine))
    validated = sum(line.val_seconds or 0.0 for line in own if isinstance(line, EpochLine))
    trained = own[-1].time - own[0].time - saved - validated
    assert second.spent.save_s == pytest.approx(saved, abs=0.002)
    assert second.spent.val_s == pytest.approx(validated, abs=0.002)
    assert second.spent.useful_s + second.spent.lost_s == pytest.approx(trained, abs=0.01)
    assert second.spent.allocated_s == pytest.approx(own[-1].time - (attempts[1].started_s or 0.0), abs=0.01)
    assert len(lines) < len(killed) + 16

    assert (second.work.cores or 0) > 0
    assert 0.1 < (second.work.host_gb or 0) < 10
    tail = lines[-1:]  # a finished run ends with a save
    assert goodput(attempts, tail) == pytest.approx(run.spent.goodput, abs=0.01)
    assert run.spent.goodput is not None
    assert 0 < run.spent.goodput < 1
    assert math.isclose(run.spent.allocated_s, sum(attempt.spent.allocated_s for attempt in run.attempts))

"""Where the time of a run went: numbers known on paper, and a real run that was stopped and killed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import child_environment, make_run

from vae.goodput import (
    Account,
    Attempt,
    Spent,
    account,
    attempts,
    cpus_per_process,
    goodput,
    interval_s,
    limit_min,
    memory_gb,
    need_s,
    suggestions,
    total,
    work,
)
from vae.metrics import read_metrics
from vae.training.trainer import train

# Two attempts on 2 GPUs. The first waits 60 s once its dependency is met, starts for 20 s and takes 30 steps
# in 60 s, of which 20 survive; the second, requeued at 250 s and held until 290 s, waits 50 s and takes 50
# steps in 100 s.
GPUS = {"device": "cuda", "world_size": 2}
FIRST = {
    **GPUS,
    "submitted_s": 0.0,
    "eligible_s": 100.0,
    "allocated_s": 160.0,
    "started_s": 165.0,
    "from_step": 0,
    "work": {"reached_step": 30, "last_s": 250.0, "train_s": 60.0, "save_s": 6.0, "saves": 2, "val_s": 4.0},
}
SECOND = {
    **GPUS,
    "restart": 1,
    "submitted_s": 250.0,
    "eligible_s": 290.0,
    "allocated_s": 300.0,
    "started_s": 305.0,
    "from_step": 20,
    "work": {"reached_step": 70, "last_s": 420.0, "train_s": 100.0, "save_s": 8.0, "saves": 2, "val_s": 2.0},
}


def lines_of(*events: tuple[str, int, float, dict[str, float]]) -> list[dict[str, Any]]:
    return [{"kind": kind, "step": step, "time": time, **more} for kind, step, time, more in events]


LINES = lines_of(
    ("start", 0, 100.0, {"total_steps": 40}),
    ("step", 10, 110.0, {}),
    ("epoch", 10, 113.0, {"val_seconds": 3.0}),
    ("save", 10, 115.0, {"seconds": 2.0, "train_s": 10.0, "save_s": 2.0, "saves": 1, "val_s": 3.0}),
    ("step", 20, 126.0, {}),
    ("epoch", 20, 130.0, {"val_seconds": 4.0}),
    ("step", 22, 132.0, {}),
)


def test_time_is_told_apart_by_what_became_of_it() -> None:
    first, second = (one.spent for one in attempts([FIRST, SECOND], []) if one)
    assert first == Spent(60, 20, 40, 20, 6, 4, gpu_hours=2 * 90 / 3600)
    assert second == Spent(50, 10, 100, 0, 8, 2, gpu_hours=2 * 120 / 3600)
    both = total([first, second])
    assert (both.allocated_s, both.wait_s) == (210, 110)
    assert both.goodput == goodput([FIRST, SECOND], []) == 140 / 210


def test_going_back_behind_an_attempt_loses_the_steps_of_all_before() -> None:
    """The newest checkpoint was damaged: the third attempt begins at step 10."""
    found = attempts([FIRST, SECOND, {"from_step": 10, "started_s": 500.0}], [])
    assert [one.steps_lost if one else None for one in found] == [20, 50, None]
    assert found[0] is not None
    assert (found[0].spent.useful_s, found[0].spent.lost_s) == (20, 40)


def test_what_is_not_known_is_not_made_up() -> None:
    """Without a scheduler: no wait, and time counts from the call; without a GPU: core-hours if known."""
    known = {key: value for key, value in FIRST.items() if not key.endswith("ed_s") or key == "started_s"}
    (one,) = attempts([{**known, "device": "cpu"}], [])
    assert one is not None
    assert (one.spent.wait_s, one.spent.startup_s, one.spent.cpu_hours) == (None, 15, None)
    (one,) = attempts([{**known, "device": "cpu", "cpus": 4}], [])
    assert one is not None
    assert (one.spent.cpu_hours, one.spent.gpu_hours) == (2 * 4 * 85 / 3600, 0)  # two ranks with 4 each
    assert total([one.spent, Spent()]).wait_s is None
    assert attempts([{"from_step": 0}], LINES) == [None]  # by a version that noted no times
    assert goodput([], []) is None


def test_an_attempt_is_read_from_the_end_of_its_lines() -> None:
    """20 s until step 22 is what is left of 32 s after 5 s up to the save's end and 7 s of validation."""
    whole = work(LINES)
    assert whole["reached_step"] == 22
    assert (whole["train_s"], whole["save_s"], whole["saves"], whole["val_s"]) == (23.0, 2.0, 1, 7.0)
    assert work(LINES[3:]) == whole
    assert work(LINES[:3])["train_s"] == 10.0
    assert work(LINES[4:]) == {}
    assert work(lines_of(("save", 10, 115.0, {"seconds": 2.0}))) == {}  # by a version that noted no sums


def test_lines_older_than_the_attempt_are_not_its_own() -> None:
    fresh = {**GPUS, "from_step": 10, "started_s": 140.0}
    assert attempts([fresh], LINES) == [None]
    (one,) = attempts([{**fresh, "started_s": 95.0, "from_step": 0}], LINES)
    assert one is not None
    assert one.spent == Spent(None, 5, 23, 0, 2, 7, gpu_hours=2 * 37 / 3600)


# --- suggestions -----------------------------------------------------------------------------


def attempt(**changes: Any) -> Attempt:
    """100 steps in 200 s and 40 s of saving and validating, after 60 s of start-up."""
    spent = Spent(startup_s=60, useful_s=200, save_s=24, val_s=16)
    known = {"spent": spent, "first_step": 0, "steps": 100, "steps_lost": 0, "saves": 4}
    return Attempt(**{**known, "place": ("cuda", 2), "peaks": {}, **changes})


def test_limits_have_reserve_and_whole_quarters() -> None:
    assert [limit_min(seconds) for seconds in (1, 750, 751, 3600)] == [15, 15, 30, 75]
    assert [cpus_per_process(cores) for cores in (0.1, 1.6, 3.5)] == [1, 2, 5]
    assert [memory_gb(peak) for peak in (0.2, 1.5, 3.2)] == [1, 2, 5]


def test_time_left_follows_the_pace_on_these_processes() -> None:
    """2.4 s a step with saves and validations; the first attempt, on one process, tells nothing."""
    slow = attempt(place=("cuda", 1), spent=Spent(useful_s=9000))
    assert need_s(Account("a", (slow, attempt()), 1000, 900), 900) == pytest.approx(60 + 900 * 2.4)
    assert need_s(Account("a", (attempt(steps=0, spent=Spent()),), 1000, 1000), 1000) is None


def test_suggestions_name_the_setting_and_the_reason() -> None:
    peaks = {"cores": 1.5, "host_gb": 2.0, "gpu_gb": 1.0}
    left = Account("a", (attempt(peaks=peaks),), 1000, 900, scoring_gb=3.0)  # needs 37 min
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
    unscored = Account("a", (attempt(peaks={"host_gb": 2.0}),), 100, 0)
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

KILL_AT_CALL = """
import os, signal, sys
from pathlib import Path
from vae.training.trainer import train

calls = iter(range(1, 10_000))
train(Path(sys.argv[1]), lambda: next(calls) == int(sys.argv[2]) and os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_run_that_was_stopped_and_killed_accounts_for_every_step(tmp_path: Path, shards: Path) -> None:
    """Stopped after step 5, killed in step 14 with step 8 saved (an epoch's end), then brought to its end."""
    run_dir = make_run(tmp_path / "run", shards, checkpoint_every_min=1000)
    stop = iter([False] * 4 + [True])
    assert train(run_dir, should_stop=lambda: next(stop)) is False
    command = [sys.executable, "-c", KILL_AT_CALL, str(run_dir), "9"]
    assert subprocess.run(command, env=child_environment(), stderr=subprocess.DEVNULL).returncode == -9
    killed = read_metrics(run_dir)
    assert train(run_dir) is True

    known = json.loads((run_dir / "provenance.json").read_text())["attempts"]
    lines = read_metrics(run_dir)
    told = account("run", known, lines, is_done=True)
    first, second, third = told.attempts
    assert [(one.first_step, one.steps, one.steps_lost) for one in told.attempts] == [
        (0, 5, 0),
        (5, 9, 6),
        (8, 16, 0),
    ]
    assert (told.total_steps, told.steps_left) == (24, 0)
    assert first.spent.lost_s == third.spent.lost_s == 0
    assert second.spent.lost_s == pytest.approx(2 * second.spent.useful_s)  # 6 steps of 9

    # the second attempt's sums are those of the lines it left, which are gone from the file
    start = max(place for place, line in enumerate(killed) if line["kind"] == "start")
    own = killed[start:]
    saved = sum(line["seconds"] for line in own if line["kind"] == "save")
    validated = sum(line["val_seconds"] for line in own if line["kind"] == "epoch")
    trained = own[-1]["time"] - own[0]["time"] - saved - validated
    assert second.spent.save_s == pytest.approx(saved, abs=0.002)
    assert second.spent.val_s == pytest.approx(validated, abs=0.002)
    assert second.spent.useful_s + second.spent.lost_s == pytest.approx(trained, abs=0.01)
    assert second.spent.allocated_s == pytest.approx(own[-1]["time"] - known[1]["started_s"], abs=0.01)
    assert len(lines) < len(killed) + 16

    assert second.peaks["cores"] > 0
    assert 0.1 < second.peaks["host_gb"] < 10
    tail = lines[-1:]  # a finished run ends with a save
    assert goodput(known, tail) == pytest.approx(told.spent.goodput, abs=0.01)
    assert told.spent.goodput is not None
    assert 0 < told.spent.goodput < 1
    assert math.isclose(told.spent.allocated_s, sum(one.spent.allocated_s for one in told.attempts))

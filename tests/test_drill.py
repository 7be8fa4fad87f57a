"""Interruptions: how they are planned and judged, and a real drill with signals and on a real SLURM."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from devcluster import DevCluster
from tiny import REPOSITORY, make_run

from slurm.drill.drill import Target
from slurm.drill.faults import LOCAL_DECK, SLURM_COMMANDS, SLURM_DECK, Blow, Hit, Refused, deal, run_command
from slurm.drill.faults import shuffled as shuffled_cards
from slurm.drill.verdict import (
    Break,
    Stretch,
    breaks,
    describe,
    judge_breaks,
    judge_end,
    judge_study,
    read_stretches,
)
from vae.study import DONE_FILE, METRICS_FILE, PROVENANCE_FILE

RUNS = ("linear-s0", "direct-s0")


# --- planning ------------------------------------------------------------------------------------------


def test_a_plan_is_the_same_for_the_same_seed_and_uses_every_way() -> None:
    plans = []
    for seed in (1, 1, 2):
        rng = random.Random(seed)
        plans.append(deal(shuffled_cards(SLURM_DECK, len(SLURM_DECK), rng), RUNS, rng))
    assert plans[0] == plans[1] != plans[2]
    dealt = [(blow.what, blow.when) for blows in plans[0].values() for blow in blows]
    assert sorted(dealt) == sorted(SLURM_DECK)


def test_blows_come_in_order_and_at_most_one_at_the_end() -> None:
    cards = [Blow("warned", "ending"), Blow("killed"), Blow("killed", "ending"), Blow("warned")]
    blows = deal(cards, ("linear-s0",), random.Random(0))["linear-s0"]
    shares = [blow.share for blow in blows]
    assert shares == sorted(shares)
    assert [blow.when for blow in blows].count("ending") == 1
    assert blows[-1] == Blow("warned", "ending", 1.0)


def test_every_card_is_a_way_that_exists() -> None:
    assert {what for what, _ in SLURM_DECK} <= SLURM_COMMANDS.keys()
    assert {what for what, _ in LOCAL_DECK} == {"warned", "killed", "terminated", "launcher killed"}


def test_a_refusal_is_told_from_being_too_late() -> None:
    assert run_command(["sh", "-c", "exit 0"])
    assert not run_command(["sh", "-c", "echo scancel: error: Invalid job id 7 >&2; exit 1"])
    with pytest.raises(Refused, match="Access/permission denied"):
        run_command(["sh", "-c", "echo Access/permission denied >&2; exit 1"])


def test_a_blow_falls_when_its_step_has_come(tmp_path: Path) -> None:
    target = Target(tmp_path, 0, [Blow("warned", "training", 0.5)])
    assert not target.look(is_running=False)
    (tmp_path / PROVENANCE_FILE).write_text('{"attempts": [{}]}')
    write_metrics(tmp_path, {10: 1.0})
    assert not target.look(is_running=True)
    write_metrics(tmp_path, {10: 1.0, 50: 1.0})
    assert target.look(is_running=True)
    target.add(Hit("warned", "training", 50, 0.0))
    target.blows.append(Blow("killed", "training", 0.5))
    assert not target.look(is_running=True)  # this attempt is ending
    (tmp_path / PROVENANCE_FILE).write_text('{"attempts": [{}, {}]}')
    assert target.look(is_running=True)


# --- judging -------------------------------------------------------------------------------------------


def write_metrics(run_dir: Path, losses: dict[int, float]) -> None:
    lines: list[dict[str, Any]] = [{"kind": "start", "step": 0, "total_steps": 100, "steps_per_epoch": 10}]
    lines += [
        {"kind": "step", "step": step, "loss": loss, "time": float(step)} for step, loss in losses.items()
    ]
    (run_dir / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_stretches_are_read_from_the_logs_of_all_attempts(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "train-9_0-r0-rank0.log").write_text(
        "2026-01-31 12:01:00,500 linear-s0: begins at step 5 of 20 with 1 rank(s) on cpu\n"
    )
    (logs / "train-8_0-r0-rank0.log").write_text(
        "2026-01-31 12:00:00,000 linear-s0: begins at step 0 of 20 with 1 rank(s) on cpu\n"
        "2026-01-31 12:00:01,000 linear-s0: step 5 of 20: loss 3.0 nats/image, 9 images/s\n"
        "2026-01-31 12:00:02,000 linear-s0: step 10 of 20: loss 2.0 nats/image, 9 images/s\n"
    )
    first, second = read_stretches(tmp_path)
    assert (first.from_step, first.last_step, second.from_step, second.last_step) == (0, 10, 5, 5)
    assert second.began - first.began == 60.5


def stretch(began: float, from_step: int, *steps: tuple[int, float]) -> Stretch:
    return Stretch(began, from_step, steps)


def test_lost_steps_are_those_after_the_one_it_resumed_at() -> None:
    hit = Hit("killed", "training", 30, 4.0)
    stretches = [stretch(0, 0, (10, 1.0), (20, 2.0), (30, 3.5)), stretch(9.0, 10, (20, 10.0))]
    (one,) = breaks(stretches, [hit])
    assert (one.hits, one.lost_steps, one.lost_s) == ((hit,), 20, 1.5)
    assert (
        describe(hit, [one])
        == "killed while training, at step 30: resumed at step 10 after 5 s, 20 steps redone"
    )


def a_break(*hits: Hit, lost: int = 0, lost_s: float = 0.0) -> Break:
    return Break(hits, 100, 100 - lost, 0.0, lost_s)


def test_a_warning_may_cost_nothing_and_a_kill_the_checkpoint_interval() -> None:
    warned, killed = Hit("warned", "training", 100, 0.0), Hit("killed", "training", 100, 0.0)
    assert not judge_breaks("r", [a_break(warned), a_break(killed, lost=50, lost_s=9.0)], 10.0)
    assert "in spite of a warning" in judge_breaks("r", [a_break(warned, lost=1)], 10.0)[0]
    assert "stopped by its scheduler" in judge_breaks("r", [a_break(lost=1)], 10.0)[0]
    assert "20.0 s; allowed: 10.0 s" in judge_breaks("r", [a_break(killed, lost=99, lost_s=20.0)], 10.0)[0]
    assert not judge_breaks("r", [a_break(warned, killed, lost=50, lost_s=9.0)], 10.0)
    early = Hit("killed", "starting", 0, 0.0)  # had nothing to lose, so it excuses nothing
    assert judge_breaks("r", [a_break(warned, early, lost=1)], 10.0)


def test_another_end_than_the_unbroken_runs_is_told(tmp_path: Path, shards: Path) -> None:
    from vae.training.trainer import train

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
    assert differs.startswith("other: losses differ by")
    assert weights == "other: the weights differ"
    write_metrics(right, {1: 1.0})
    assert "logged steps, the unbroken run has 1" in judge_end(left, right)[0]


def test_what_is_missing_or_left_behind_is_told(scored_study: Path, tmp_path: Path) -> None:
    assert judge_study(scored_study) == ["linear-s1 is not trained", "direct-s1 is not trained"]
    (tmp_path / "study.yaml").write_text((scored_study / "study.yaml").read_text())
    (tmp_path / "linear-s0").mkdir()
    (tmp_path / "linear-s0" / ".rendezvous-7-r0.json").touch()
    assert judge_study(tmp_path)[-1] == "linear-s0/.rendezvous-7-r0.json is left behind"


# --- for real ------------------------------------------------------------------------------------------


def drill(folder: Path, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / "drill.py"), "--variant", "direct", *words]
    return subprocess.run(
        command, cwd=folder, env={**env, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400
    )


def test_a_mistake_is_said_before_anything_starts(tmp_path: Path) -> None:
    for words, said in (
        (("--gpus", "3", "--nodes", "2"), "error: --gpus 3 cannot be spread evenly over --nodes 2"),
        (("--data", "nowhere"), "error: --data nowhere: no packed images there"),
        (("--count", "0"), "error: --count 0; allowed: at least 1"),
        (("--seed", "-1"), "error: --seed -1; allowed: 0 or more"),
    ):
        done = drill(tmp_path, "--cluster", "local", *words, env=dict(os.environ))
        assert (done.returncode, done.stderr.splitlines()[0]) == (2, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_drill_on_this_machine_passes(tmp_path: Path) -> None:
    done = drill(tmp_path, "--cluster", "local", "--count", "2", "--seed", "1", env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("The drill passed: ")
    again = drill(tmp_path, "--cluster", "local", "--count", "2", "--seed", "1", env=dict(os.environ))
    assert again.stdout == done.stdout


@pytest.mark.slurm
@pytest.mark.slow
def test_a_drill_on_slurm_passes_and_tells_when_it_does_not(cluster: DevCluster, tmp_path: Path) -> None:
    words = ("--profile", str(REPOSITORY / "tests" / "devcluster.yaml"), "--count", "2", "--seed", "4")
    done = drill(tmp_path, *words, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"2 interruptions \([a-z, ]+\) changed nothing \(bit for bit\)", done.stdout)
    assert not cluster.run("squeue", "-h", "-o", "%j")
    # a result that is not the unbroken run's
    twin = tmp_path / "runs" / "drill-4-unbroken" / "direct-s0"
    lines = (twin / METRICS_FILE).read_text().splitlines()
    numbers = [json.loads(line) for line in lines]
    step = next(number for number, line in enumerate(numbers) if line["kind"] == "step")
    numbers[step]["loss"] *= 1 + 1e-12
    (twin / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in numbers))
    failed = drill(tmp_path, *words, env=cluster.env)
    assert failed.returncode == 1
    assert "problem: direct-s0: losses differ by 1e-12" in failed.stdout
    assert (twin / DONE_FILE).exists()

"""A drill from its options to its verdict, in this process; and for real, here and on SLURM."""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from devcluster import DevCluster
from doors import run_door
from tiny import REPOSITORY, make_run

from data_prep.errors import ClusterError, DamagedFile
from slurm.client import QueueWatch
from slurm.drill.drill import Drill, Launcher, positions, read_plan, stop_drill
from slurm.drill.faulted_study import FaultedStudy, Target
from slurm.drill.faults import FaultKind, InjectedFault, Moment, PlannedFault, RunFaults, on_slurm
from slurm.drill.options import DrillOptions
from slurm.node.environment import Backend
from slurm.plan import Resources
from vae.run_dir import DONE_FILE, DRILL_FILE, EVENTS_FILE, METRICS_FILE, STUDY_FILE
from vae.study import Study, prepare_study, read_study
from vae.training.trainer import train


@pytest.fixture
def options(tmp_path: Path, shards: Path) -> DrillOptions:
    return DrillOptions("direct", Resources(1, 1), shards, 4, 1, Backend.LOCAL, "", tmp_path / "runs")


# --- launching -----------------------------------------------------------------------------------------


def a_launcher(options: DrillOptions, script: str) -> Launcher:
    """One that runs a line of Python instead, in the runs folder."""
    options.runs_dir.mkdir(parents=True, exist_ok=True)
    code = f"import os, sys, time; os.chdir({str(options.study_dir.parent)!r}); {script}"
    return Launcher([sys.executable, "-c", code], options.study_dir, options)


MAKE_STUDY = f"os.makedirs('drill-1', exist_ok=True); open('drill-1/{STUDY_FILE}', 'w').close()"


def test_a_refused_launch_is_told_in_its_own_words(options: DrillOptions) -> None:
    for text, message, hint in (
        ("error: no node has 9 GPUs\\nhint: fewer", "launch: no node has 9 GPUs", "fewer"),
        ("something else", "launch: something else", None),
    ):
        with pytest.raises(ClusterError) as caught:
            a_launcher(options, f"sys.stderr.write('{text}\\n'); sys.exit(2)").launch()
        assert (str(caught.value), caught.value.hint) == (message, hint)


def test_on_this_machine_a_launch_stays_in_the_background(options: DrillOptions) -> None:
    launcher = a_launcher(options, f"{MAKE_STUDY}; time.sleep(60)")
    assert launcher.launch()
    assert launcher.pid() is not None
    assert not launcher.launch()  # one at a time
    assert launcher._process is not None
    launcher._process.kill()
    launcher._process.wait()
    assert launcher.pid() is None
    assert launcher.launch()
    launcher._process.kill()


def test_on_slurm_a_launch_is_waited_for(options: DrillOptions) -> None:
    launcher = a_launcher(replace(options, backend=Backend.SLURM), f"{MAKE_STUDY}; time.sleep(0.3)")
    began = time.monotonic()
    assert launcher.launch()
    assert time.monotonic() - began > 0.3
    assert launcher.pid() is None
    assert launcher.command[-1] == "--study=drill-1"


# --- what is remembered --------------------------------------------------------------------------------


def test_a_plan_is_made_once_and_then_read(options: DrillOptions) -> None:
    plan = read_plan(options)
    assert plan == read_plan(options)
    assert plan != read_plan(replace(options, seed=2))
    assert [len(faults.planned) for faults in plan.values()] == [4]
    target = Target(options.study_dir / "direct-s0", 0, plan["direct-s0"], 0)
    target.note(InjectedFault(target.planned[0].kind, Moment.TRAINING, step=5, attempts=1, time=2.0))
    a_drill(options, target).remember()
    (faults,) = read_plan(options).values()
    assert faults == target.faults()
    assert (len(faults.planned), len(faults.injected)) == (3, 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "Input data was truncated"),
        ('{"linear-s0": {"blows": [], "hits": []}}', "linear-s0"),
        ('{"runs": {"linear-s0": {"planned": [{"kind": "shaken"}]}}}', "shaken"),
    ],
)
def test_a_plan_that_is_not_ours_is_one_line(options: DrillOptions, text: str, problem: str) -> None:
    options.study_dir.mkdir(parents=True)
    (options.study_dir / DRILL_FILE).write_text(text)
    with pytest.raises(DamagedFile, match=f"{DRILL_FILE} is damaged: .*{problem}") as caught:
        read_plan(options)
    assert caught.value.hint == "remove the folders of the drill's two studies: it begins anew"


def test_stopping_before_anything_was_launched_is_nothing(options: DrillOptions) -> None:
    stop_drill(options)
    assert not options.runs_dir.exists()


# --- what came of it -----------------------------------------------------------------------------------


def a_drill(options: DrillOptions, *targets: Target) -> Drill:
    """Two studies that were launched by somebody else."""

    def drill_of(study_dir: Path, targets: list[Target]) -> FaultedStudy:
        prepare_study(study_dir, Study(study_dir.name, ("direct-s0",), extractor="smoke"))
        return FaultedStudy(
            study_dir, read_study(study_dir), targets, lambda: False, on_slurm, QueueWatch(ask=tuple)
        )

    launchers = (a_launcher(options, ""), a_launcher(options, ""))
    twin = [Target(options.unbroken_dir / "direct-s0", 0, RunFaults(), 0)]
    return Drill(drill_of(options.study_dir, list(targets)), drill_of(options.unbroken_dir, twin), launchers)


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A runs folder with one run that was stopped once, and its twin; neither is scored."""
    runs_dir = tmp_path_factory.mktemp("runs")
    run_dir, unbroken = (
        make_run(runs_dir / study / "direct-s0", shards, variant="direct", epochs=1)
        for study in ("drill-1", "drill-1-unbroken")
    )
    steps = iter(range(4))
    train(run_dir, lambda: next(steps, None) is None)
    train(run_dir)
    train(unbroken)
    return runs_dir


@pytest.fixture
def played(options: DrillOptions, trained_runs: Path) -> Drill:
    """What is left when all is done: one run was warned at step 4."""
    shutil.copytree(trained_runs, options.runs_dir)
    warned = InjectedFault(FaultKind.WARNED, step=4, attempts=1, time=time.time())
    planned = (PlannedFault(FaultKind.KILLED, Moment.SAVING),)
    target = Target(options.study_dir / "direct-s0", 0, RunFaults(planned, (warned,)), 2)
    drill = a_drill(options, target)
    drill.faulted.refused[FaultKind.REQUEUED] = "SLURM refused `scontrol requeue 8_0`: no"
    return drill


def test_each_fault_is_told_in_a_line(played: Drill) -> None:
    warned, *others = played.lines()
    assert re.fullmatch(
        "direct-s0: warned while training, at step 4: resumed at step 5 after -?[0-9]+ s, nothing lost",
        warned,
    )
    assert others == [
        "direct-s0: killed while saving: the run was done before",
        "requeued: left out, for this site does not allow it: SLURM refused `scontrol requeue 8_0`: no",
    ]
    assert played.problems() == ["direct-s0 is not scored"]
    assert positions(played.faulted) == ["drill-1/direct-s0 trained, step 8 of 8"]


def test_the_summary_says_whether_the_drill_passed(played: Drill) -> None:
    assert played.summary([]) == (
        "The drill passed: 1 interruptions (warned) changed nothing (bit for bit), "
        "and no warning cost a step."
    )
    failed = "The drill failed: 2 of the promises did not hold after 1 interruptions."
    assert played.summary(["one", "two"]) == failed


def test_damage_is_a_problem_and_the_other_lines_are_told(played: Drill) -> None:
    events = played.faulted.study_dir / "direct-s0" / EVENTS_FILE
    events.write_text(f"half a line\n{events.read_text()}")
    assert [line.split(":")[0] for line in played.lines()] == ["direct-s0", "requeued"]
    assert f"{events}, line 1, is damaged" in played.problems()[-1]


def test_a_drill_plays_until_nothing_is_left_to_do(played: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([False, False, True])
    monkeypatch.setattr(FaultedStudy, "is_done", property(lambda self: next(looks, True)))
    ticks: list[str] = []

    def tick(self: FaultedStudy) -> list[object]:
        ticks.append(self.study_dir.name)
        return []

    monkeypatch.setattr(FaultedStudy, "tick", tick)
    played.play()
    assert ticks == ["drill-1-unbroken", "drill-1"] * 2


# --- for real ------------------------------------------------------------------------------------------


def drill(folder: Path, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / "drill.py"), "--variant", "direct", *words]
    return subprocess.run(
        command, cwd=folder, env={**env, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400
    )


@pytest.mark.slow
def test_a_drill_on_this_machine_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is launched and interrupted are processes; who does it is this one, which has torch imported."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ("--cluster", "local", "--variant", "direct", "--count", "1", "--seed", "1")
    done = run_door("drill", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("The drill passed: ")
    again = run_door("drill", *words, cwd=tmp_path)
    assert again.stdout == done.stdout


@pytest.mark.slurm
@pytest.mark.slow
def test_a_drill_on_slurm_passes_and_tells_when_it_does_not(cluster: DevCluster, tmp_path: Path) -> None:
    """Seed 60 cancels one run just after a warning, the other while it is scored: neither may come back."""
    words = ("--profile", str(REPOSITORY / "tests" / "devcluster.yaml"), "--count", "2", "--seed", "60")
    done = drill(tmp_path, *words, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"2 interruptions \([a-z, ]+\) changed nothing \(bit for bit\)", done.stdout)
    assert not cluster.run("squeue", "-h", "-o", "%j")
    # a result that is not the unbroken run's
    twin = tmp_path / "runs" / "drill-60-unbroken" / "direct-s0"
    lines = (twin / METRICS_FILE).read_text().splitlines()
    numbers = [json.loads(line) for line in lines]
    step = next(number for number, line in enumerate(numbers) if line["kind"] == "step")
    numbers[step]["loss"] *= 1 + 1e-12
    (twin / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in numbers))
    failed = drill(tmp_path, *words, env=cluster.env)
    assert failed.returncode == 1
    assert "problem: direct-s0: losses differ by 1e-12" in failed.stdout
    assert (twin / DONE_FILE).exists()

"""Fault injection: what is planned for which run, and how it gets into a job."""

import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from slurm import client
from slurm.drill import faults
from slurm.drill.faults import (
    LOCAL_FAULTS,
    SLURM_FAULTS,
    FaultKind,
    Moment,
    PlannedFault,
    assign,
    inject_here,
    inject_on_slurm,
    ranks_of,
    schedule,
    send_signal,
)

RUNS = ("linear-s0", "direct-s0")


# --- planning ------------------------------------------------------------------------------------------


def test_a_plan_is_the_same_for_the_same_seed_and_uses_every_kind() -> None:
    plans = []
    for seed in (1, 1, 2):
        rng = random.Random(seed)
        plans.append(assign(schedule(SLURM_FAULTS, len(SLURM_FAULTS), rng), RUNS, rng))
    assert plans[0] == plans[1] != plans[2]
    planned = [str(fault) for own in plans[0].values() for fault in own]
    assert sorted(planned) == sorted(map(str, SLURM_FAULTS))


def test_faults_come_in_order_and_at_most_one_at_the_end() -> None:
    ending = PlannedFault(FaultKind.WARNED, Moment.ENDING)
    mix = [ending, PlannedFault(FaultKind.KILLED), PlannedFault(FaultKind.KILLED, Moment.ENDING), ending]
    own = assign(mix, ("linear-s0",), random.Random(0))["linear-s0"]
    shares = [fault.share for fault in own]
    assert shares == sorted(shares)
    assert [fault.moment for fault in own].count(Moment.ENDING) == 1
    assert own[-1] == PlannedFault(FaultKind.WARNED, Moment.ENDING, 1.0)


def test_scoring_comes_after_all_of_the_training() -> None:
    mix = [PlannedFault(FaultKind.KILLED, Moment.SCORING), PlannedFault(FaultKind.WARNED, Moment.ENDING)]
    own = assign(mix, ("linear-s0",), random.Random(0))["linear-s0"]
    assert [fault.moment for fault in own] == [Moment.ENDING, Moment.SCORING]


def test_what_lets_a_run_save_is_a_warning() -> None:
    ends_at_once = {"killed", "launcher killed", "rank killed", "node lost"}
    assert {kind.value for kind in FaultKind if not kind.is_warning} == ends_at_once


# --- injecting -----------------------------------------------------------------------------------------


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What SLURM's programs were told."""
    commands: list[str] = []

    def run(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
        commands.append(" ".join(command))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(client, "run", run)
    return commands


def test_each_fault_of_the_mix_is_an_order_to_slurm(commands: list[str]) -> None:
    for kind in sorted({fault.kind for fault in SLURM_FAULTS} - {FaultKind.CANCELLED}):  # that is a door's
        assert inject_on_slurm(PlannedFault(kind), "8_1")
    assert commands == [
        "scancel --signal=KILL 8_1.0",
        "scontrol requeue 8_1",
        "scancel 8_1",
        "scancel --signal=TERM 8_1",
        "scancel --signal=USR2 8_1",
    ]


@pytest.mark.parametrize(
    "words",
    [
        "scancel: error: Invalid job id 7",
        "scancel: error: Kill job error on job id 8_1: Job/step already completing or completed",
        "Job is pending execution for job 8_1",
    ],
)
def test_a_job_that_does_not_run_any_more_was_not_hit(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr(client, "run", lambda *_: subprocess.CompletedProcess([], 1, "", words))
    assert not inject_on_slurm(PlannedFault(FaultKind.WARNED), "8_1")


def test_what_the_site_does_not_allow_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = subprocess.CompletedProcess([], 1, "", "Access/permission denied")
    monkeypatch.setattr(client, "run", lambda *_: denied)
    with pytest.raises(client.SlurmRefused, match=r"`scontrol requeue 8_1`: Access/permission denied"):
        inject_on_slurm(PlannedFault(FaultKind.REQUEUED), "8_1")


def test_each_fault_of_this_machine_is_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[tuple[list[int], int]] = []
    monkeypatch.setattr(faults, "ranks_of", lambda controller: [controller + 1, controller + 2])
    monkeypatch.setattr(faults, "send_signal", lambda pids, number: signals.append((list(pids), number)))
    for kind in sorted({fault.kind for fault in LOCAL_FAULTS}):
        inject_here(lambda: 7, PlannedFault(kind), "local-100")
    assert signals == [
        ([101], signal.SIGKILL),
        ([7], signal.SIGKILL),
        ([7], signal.SIGTERM),
        ([101, 102], signal.SIGUSR2),
    ]


def test_without_a_launcher_or_a_job_nothing_is_hit() -> None:
    assert not inject_here(lambda: None, PlannedFault(FaultKind.TERMINATED), "local-1")
    assert not inject_here(lambda: None, PlannedFault(FaultKind.KILLED), "local-99999999")


def test_only_the_ranks_of_a_controller_are_hit(tmp_path: Path) -> None:
    """Another process may have got the id of one that has ended."""
    start = "import subprocess; subprocess.run(['sleep', '60'])"
    for name, is_controller in (("submitit", True), ("other", False)):
        parent = subprocess.Popen([sys.executable, "-c", start, name])
        child = wait_for_child(parent.pid)
        try:
            assert ranks_of(parent.pid) == ([child] if is_controller else [])
        finally:
            assert send_signal([parent.pid, child], signal.SIGKILL)
            parent.wait()
    assert not send_signal([parent.pid], signal.SIGKILL)


def wait_for_child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (words := children.read_text().split()):
        pass
    return int(words[0])

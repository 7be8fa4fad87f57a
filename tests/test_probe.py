"""slurm/doctor/probe.py: one short job, watched in its folder, and nothing left behind."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from devcluster import DevCluster, wait_for
from fake_slurm import FakeSlurm
from sites import DEV_PROFILE, GPU, MIXED, no_trace, profile_with, rank, rows
from tiny import REPOSITORY

from slurm import client
from slurm.code_snapshot import Snapshot
from slurm.doctor.node_checks import check_job
from slurm.doctor.probe import LIMIT_MIN, Probe, probe_resources, run_probe, telling_line, uninterrupted
from slurm.doctor.probe_task import write_facts
from slurm.doctor.site import NodeKind, Partition
from slurm.plan import Resources
from slurm.profile import ClusterProfile, read_profile
from vae.run_dir import JOBS_DIR

DOOR = str(REPOSITORY / "jobs" / "doctor.py")


@pytest.mark.parametrize(
    ("partition", "settings", "resources"),
    [
        (GPU, {}, Resources(2, 2)),
        (MIXED, {"gpu_type": "v100"}, Resources(2, 2)),
        (dataclasses.replace(GPU, max_nodes=1), {}, Resources(2, 1)),
        (Partition("one", kinds=(NodeKind(1, 8, 30, 1),)), {}, Resources()),
        (Partition("one", kinds=(NodeKind(1, 8, 30),)), {"drop": ("gpus-per-node",)}, Resources(2, 1)),
    ],
)
def test_the_probe_takes_two_nodes_else_two_ranks_else_one(
    partition: Partition, settings: dict, resources: Resources
) -> None:
    assert probe_resources(partition, ClusterProfile(**settings)) == resources


def test_ctrl_c_waits_until_a_program_has_answered() -> None:
    answers = []

    def interrupted_question() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            answers.append(subprocess.check_output(["sh", "-c", "kill -INT $$; echo done"], text=True))

    with pytest.raises(KeyboardInterrupt):
        interrupted_question()
    assert answers == ["done\n"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("module load\nerror: no such shard\nsrun: error: n1: exit 1\n", "error: no such shard"),
        ("bash: module: command not found\nsrun: error: n1: exit 1\n", "bash: module: command not found"),
        ("srun: error: n1: exit 1\n", "srun: error: n1: exit 1"),
        ("\n", ""),
    ],
)
def test_the_line_of_a_log_that_says_best_what_went_wrong(tmp_path: Path, lines: str, expected: str) -> None:
    assert telling_line(tmp_path) == ""
    (tmp_path / JOBS_DIR).mkdir()
    (tmp_path / JOBS_DIR / "8.log").write_text(lines)
    assert telling_line(tmp_path) == expected


# --- the life of a probe, played in memory ---------------------------------------------------------------


@dataclasses.dataclass
class Play:
    """A probe of two ranks, job 1 of a cluster whose time costs nothing."""

    slurm: FakeSlurm
    runs_dir: Path

    def at(self, moment_s: float, *acts: Callable[[], object]) -> None:
        for act in acts:
            self.slurm.at(moment_s, act)

    def start(self) -> None:
        self.slurm.start("1")

    def end(self, state: str = "COMPLETED") -> None:
        self.slurm.end("1", state)

    def write(self, *numbers: int, **facts: object) -> None:
        """Have ranks write what they have seen."""
        (folder,) = self.runs_dir.glob(".doctor-*")
        for number in numbers:
            write_facts(folder, rank(number, **facts))

    def run(self, wait_min: float = 10) -> Probe:
        probe = run_probe(self.runs_dir, ClusterProfile(), Resources(2, 2), None, wait_min)
        assert list(self.runs_dir.iterdir()) == []
        return probe


@pytest.fixture
def play(fake_slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    fake_slurm.take_over_time(monkeypatch)
    # the code is there already: nothing is copied, and git is not asked while time stands still
    monkeypatch.setattr("slurm.doctor.probe.take_snapshot", lambda folder: Snapshot(folder, {}))
    return Play(fake_slurm, tmp_path / "runs")


def test_a_probe_is_over_when_its_ranks_have_written_everything(play: Play) -> None:
    play.at(5, play.start)
    play.at(9, lambda: play.write(0, doing="rendezvous"), lambda: play.write(1))
    play.at(13, lambda: play.write(0))
    play.at(14, play.end)
    probe = play.run()
    assert (probe.state, [facts.node for facts in probe.ranks]) == ("COMPLETED", ["n1", "n2"])
    assert 13 <= probe.waited_s < 14  # squeue would have said so at 20
    assert play.slurm.asked("squeue") <= 3
    assert play.slurm.asked("sacct") == 0
    assert play.slurm.jobs["1"].state == "COMPLETED"  # it was given the time to end by itself


def test_a_job_that_lingers_is_cancelled_once_its_ranks_are_done(play: Play) -> None:
    play.at(1, play.start)
    play.at(2, lambda: play.write(0, 1))
    assert play.run().state == "COMPLETED"
    assert play.slurm.jobs["1"].state == "CANCELLED"


def test_squeue_is_asked_at_most_every_ten_seconds_and_sacct_once(play: Play) -> None:
    play.at(95, play.start)
    play.at(145, lambda: play.end("FAILED"))
    probe = play.run()
    assert (probe.state, probe.ranks) == ("FAILED", ())
    assert 145 < probe.waited_s < 160
    assert play.slurm.asked("squeue") <= 17
    assert play.slurm.asked("sacct") == 1


def test_a_failing_job_that_the_accounts_know_late_has_failed(play: Play) -> None:
    """sacct says nothing of it at first, so it is asked again; nobody waits for the facts of a failed job."""
    play.at(5, play.start)
    play.at(6, play.slurm.accounts_lag)
    play.at(7, lambda: play.end("FAILED"))
    play.at(13.5, play.slurm.accounts_catch_up)
    probe = play.run()
    assert probe.state == "FAILED"
    assert play.slurm.asked("sacct") == 2
    assert probe.waited_s < 25


def test_the_last_facts_of_a_job_that_has_ended_may_come_late(play: Play) -> None:
    play.at(1, play.start)
    play.at(5, lambda: play.write(1), play.end)
    play.at(30, lambda: play.write(0))
    assert len(play.run().ranks) == 2


def test_a_job_without_accounts_is_gone(play: Play) -> None:
    play.slurm.accounts_off()
    play.at(1, play.start)
    play.at(5, play.end)
    assert (play.run().state, play.slurm.asked("sacct")) == ("GONE", 1)


def test_a_job_that_does_not_start_in_time_is_cancelled_with_the_reason_of_that_moment(play: Play) -> None:
    play.at(25, lambda: play.slurm.pend("1", "Resources"))
    probe = play.run(wait_min=0.45)
    assert (probe.state, probe.reason) == ("PENDING", "Resources")
    assert 27 < probe.waited_s < 32
    assert play.slurm.jobs["1"].state == "CANCELLED"


def test_a_job_that_starts_at_the_last_moment_is_not_given_up(play: Play) -> None:
    play.at(26, play.start)
    play.at(40, lambda: play.write(0, 1), play.end)
    assert play.run(wait_min=0.45).state == "COMPLETED"


def test_a_job_that_hangs_is_given_up_and_shows_how_far_it_came(play: Play) -> None:
    play.at(1, play.start)
    play.at(2, lambda: play.write(0, doing="rendezvous"))
    probe = play.run(wait_min=1)
    assert (probe.state, [facts.doing for facts in probe.ranks]) == ("RUNNING", ["rendezvous"])
    assert 60 * (1 + LIMIT_MIN) < probe.waited_s < 60 * (1 + LIMIT_MIN) + 10
    assert play.slurm.jobs["1"].state == "CANCELLED"


def test_a_job_that_can_never_start_is_not_waited_for(play: Play) -> None:
    play.at(3, lambda: play.slurm.pend("1", "PartitionTimeLimit"))
    probe = play.run()
    assert (probe.state, probe.reason) == ("PENDING", "PartitionTimeLimit")
    assert probe.waited_s < 20


def test_what_is_waited_for_is_logged_once_for_each_change(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    play.at(25, play.start)
    play.at(60, lambda: play.write(0, 1), play.end)
    with caplog.at_level(logging.INFO, "slurm.doctor.probe"):
        play.run()
    lines = [record.getMessage() for record in caplog.records if record.name == "slurm.doctor.probe"]
    assert [line.partition(":")[0] for line in lines] == ["job 1 after 0 s", "job 1 after 30 s"]
    assert lines[1].endswith(": RUNNING")


def test_a_job_that_may_be_left_is_named(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    play.at(1, play.start)
    play.at(2, lambda: play.write(0, 1), lambda: play.slurm.hang("squeue"))
    play.run()
    assert "a job may be left: scancel --name=.doctor-" in caplog.text


# --- on a real cluster -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name has a space."""
    return tmp_path_factory.mktemp("shared disk")


def call(*words: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, DOOR, "--probe", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.slurm
@pytest.mark.slow
def test_the_probe_sees_two_nodes_and_leaves_nothing(cluster: DevCluster, folder: Path, shards: Path) -> None:
    leaked = {"RANK": "5", "SLURM_JOB_ID": "99", "SBATCH_PARTITION": "nowhere"}
    words = ("--profile", str(DEV_PROFILE), "--data", str(shards))
    done = call(*words, folder=folder, env={**cluster.env, **leaked, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    seen = rows(done.stdout)
    job = seen["job"][1]
    assert job.partition(" on ")[0].isdigit()
    assert job.partition(" on ")[2].startswith("n1 and n2, 2 ranks, ")
    assert job.endswith(" s in all")
    expected = (
        "shared folder",
        "packages",
        "requeue",
        "CPUs per task",
        "address",
        "all-reduce, gloo",
        "shard",
    )
    assert {name: seen[name][0] for name in expected} == dict.fromkeys(expected, "ok")
    assert seen["GPUs"] == ("warn", "1 asked for on each node, 1 allocated, torch sees 0")
    assert no_trace(cluster, folder)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_setup_line_that_fails_is_quoted(cluster: DevCluster, folder: Path) -> None:
    profile = profile_with(folder, "setup: [load_module_nothing cuda]")
    done = call("--profile", profile, folder=folder, env=cluster.env)
    assert done.returncode == 1
    verdict, seen = rows(done.stdout)["job"]
    assert verdict == "fail"
    assert "load_module_nothing: command not found" in seen
    assert no_trace(cluster, folder)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_folder_that_nodes_do_not_see_is_found_out(cluster: DevCluster, folder: Path) -> None:
    (folder / "runs").mkdir()
    # a private mount: what is written there exists for this process alone
    command = [sys.executable, DOOR, "--probe", "--profile", str(DEV_PROFILE)]
    private = ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs none runs && exec "$@"', "in", *command]
    done = subprocess.run(private, cwd=folder, env=cluster.env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    assert rows(done.stdout)["job"][0] == "fail"
    assert "choose a --runs-dir that they share" in done.stdout
    assert no_trace(cluster, folder)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_probe_is_cancelled(cluster: DevCluster, folder: Path, number: int) -> None:
    profile = profile_with(folder, "extra: {begin: now+1hour}")
    # under nohup, the tests pass an ignored SIGHUP on
    command = ["env", "--default-signal=HUP,INT", sys.executable, DOOR, "--probe", "--profile", profile]
    door = subprocess.Popen(
        command, cwd=folder, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: not no_trace(cluster, folder), 60, lambda: "no job came")
    time.sleep(0.5)
    door.send_signal(number)
    _, stderr = door.communicate(timeout=60)
    assert door.returncode == 130
    assert "interrupted" in stderr
    assert no_trace(cluster, folder)


@pytest.mark.slurm
@pytest.mark.slow
def test_a_probe_that_does_not_start_says_why_and_is_cancelled(
    cluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client, "LEAST_EVERY_S", 0.25)  # read from the environment when this process began
    profile = read_profile(profile_with(folder, "extra: {begin: now+1hour}"))
    probe = run_probe(folder / "runs", profile, Resources(2, 2), None, wait_min=0.05)
    assert (probe.state, probe.reason) == ("PENDING", "BeginTime")
    check = check_job(probe)
    assert check.verdict == "fail"
    assert "did not start in 0." in check.seen
    assert "(BeginTime)" in check.seen
    assert no_trace(cluster, folder)

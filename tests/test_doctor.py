"""jobs/doctor.py: the command, without a cluster and on a real one."""

import os
import re
from pathlib import Path

import pytest
from devcluster import DevCluster, free_ports
from doors import Result, run_door
from fake_slurm import FakeSlurm
from sites import profile_with, rows
from tiny import TINY_FLAGS

from slurm.profile import PROFILES_DIR, read_profile


def call(*words: str, folder: Path) -> Result:
    return run_door("doctor", *words, cwd=folder)


# --- without a cluster ---------------------------------------------------------------------------------


def test_without_slurm_this_machine_is_checked_alone(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.uninstall()
    done = call(folder=tmp_path)
    seen = rows(done.stdout)
    assert seen["SLURM"] == ("ok", "not on this machine: studies run here, with --cluster local")
    assert {"packages", "runs folder", "free space", "GPUs"} < set(seen)
    assert done.returncode == (1 if "fail" in {verdict for verdict, _ in seen.values()} else 0)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--probe",),
        ("--write-profile", "mine"),
        ("--wait-min", "0"),
        ("--data", "here"),
        ("--profile", "alpin"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path: Path, fake_slurm: FakeSlurm, words: tuple[str, ...]) -> None:
    fake_slurm.uninstall()
    done = call(*words, folder=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*\nhint: .*\n|error: --wait-min 0; allowed: at least 1\n", done.stderr)
    assert not done.stdout


def test_a_profile_without_slurm_fails(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.uninstall()
    done = call("--profile", "example", folder=tmp_path)
    assert done.returncode == 1
    assert rows(done.stdout)["SLURM"][0] == "fail"


def test_every_part_has_its_title_and_the_verdicts_are_counted(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.config["KillWait"] = "5 sec"
    done = call(folder=tmp_path)
    titles = re.findall(r"^(this machine|SLURM), (\S+)$", done.stdout, re.M)
    assert [title for title, _ in titles] == ["this machine", "SLURM"]
    verdicts = re.findall(r"^(ok|warn|fail) ", done.stdout, re.M)
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in ("ok", "warn", "fail")]
    assert done.stdout.endswith(f"\n\n{', '.join(counts)}\n")
    seen, hint = "KillWait 5 s from SIGTERM to SIGKILL", "-> a run that is cancelled while saving"
    assert f"\n{'warn  kill wait':26}{seen}\n{'':26}{hint}" in done.stdout
    assert done.returncode == int("fail" in verdicts)


# --- on a real cluster ---------------------------------------------------------------------------------


@pytest.fixture
def folder(
    tmp_path_factory: pytest.TempPathFactory, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder whose name has a space, on a login node of the cluster."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    return tmp_path_factory.mktemp("shared disk")


@pytest.mark.slurm
def test_a_drafted_profile_is_read_and_accepted(folder: Path, shards: Path) -> None:
    name = f"drafted-by-a-test-{os.getpid()}"
    try:
        done = call("--write-profile", name, folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"/{name}.yaml\nto use it: --profile {name}, here and with jobs/launch.py\n" in done.stdout
        seen = rows(done.stdout)
        assert seen["nodes"] == ("ok", "2 nodes of 8 CPUs, 15 GB, 4 GPUs (fake)")
        assert seen["sbatch"][0] == "ok"
        profile = read_profile(name)
        assert (profile.partition, profile.gpu_type, profile.account) == ("gpu", "fake", "root")
        words = ("--variant", "linear", "--data", str(shards), "--gpus", "2", "--nodes", "2", "--dry-run")
        dry = run_door("launch", *words, *TINY_FLAGS, "--profile", name, cwd=folder)
        assert dry.returncode == 0, dry.stderr
        assert "#SBATCH --gpus-per-node=fake:1\n" in dry.stdout
    finally:
        (PROFILES_DIR / f"{name}.yaml").unlink(missing_ok=True)


@pytest.mark.slurm
def test_what_is_wrong_here_is_told_without_a_job(folder: Path) -> None:
    profile = folder / "site.yaml"
    profile.write_text("partition: gpus\nextra: {no-requeue: ''}\n")
    done = call("--probe", "--profile", str(profile), "--runs-dir", "/proc/runs", folder=folder)
    assert done.returncode == 1
    seen = rows(done.stdout)
    assert seen["runs folder"] == ("fail", "/proc/runs cannot be written")
    assert seen["partition"] == ("fail", '"gpus" does not exist; known: gpu, urgent')
    assert seen["requeue"][0] == "fail"
    assert seen["job"] == ("fail", "not submitted")


@pytest.mark.slurm
def test_what_sbatch_refuses_is_told_in_its_words(folder: Path) -> None:
    done = call("--profile", profile_with(folder, "mem_per_gpu_gb: 500"), folder=folder)
    assert done.returncode == 1
    verdict, seen = rows(done.stdout)["sbatch"]
    assert verdict == "fail"
    assert "configuration is not available" in seen


@pytest.mark.slurm
def test_a_controller_that_does_not_answer_fails(
    cluster: DevCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = folder / "slurm.conf"
    nobody = free_ports(1)[0]
    conf.write_text(re.sub(r"SlurmctldPort=\d+", f"SlurmctldPort={nobody}", cluster.conf.read_text()))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    done = call(folder=folder)
    assert done.returncode == 1
    assert rows(done.stdout)["SLURM"] == ("fail", "sbatch is here, but its controller does not answer")

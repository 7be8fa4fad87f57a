"""The whole chain on a real two-node SLURM cluster: nothing here is simulated but the GPUs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from devcluster import DevCluster, wait_for
from tiny import REPOSITORY, TINY_FLAGS, make_run, make_shards

from slurm.state import REPORT_FILE
from vae.study import Study, prepare_study, read_json, read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PROFILE = str(Path(__file__).parent / "devcluster.yaml")
TINY = (*TINY_FLAGS, "--run.log_every_steps", "5")
SHORT = (*TINY, "--run.epochs", "1")
# Left in the environment by a job, a launcher or a shell start-up file; none of it may reach our jobs.
LEAKED = {
    "SLURM_JOB_ID": "999",
    "SLURM_ARRAY_JOB_ID": "998",
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "9",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SBATCH_PARTITION": "nowhere",
    "SRUN_CPUS_PER_TASK": "64",
    "RANK": "5",
    "WORLD_SIZE": "9",
    "MASTER_PORT": "29500",
}
CHAIN_S = 240


class Site:
    """A folder on the cluster's shared disk from which studies are launched."""

    def __init__(self, cluster: DevCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder

    def launch(self, *words: str, profile: str = PROFILE, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(REPOSITORY / "jobs" / "launch.py"), "--profile", profile, *words]
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.cluster.env, **env},
            capture_output=True,
            text=True,
            timeout=CHAIN_S,
        )

    def status(self, study: str) -> dict[str, str]:
        """State of each run, as jobs/status.py shows it."""
        command = [sys.executable, str(REPOSITORY / "jobs" / "status.py"), study]
        done = subprocess.run(
            command, cwd=self.folder, env=self.cluster.env, capture_output=True, text=True, check=True
        )
        return dict(re.findall(r"^(\w+-s\d+) +([a-z]+)", done.stdout, re.M))

    def jobs(self, study: str) -> dict[str, str]:
        """The id of the newest job of each kind."""
        return {job["kind"]: job["id"] for job in self.records(study)}

    def records(self, study: str) -> list[dict[str, Any]]:
        return json.loads((self.folder / "runs" / study / "jobs.json").read_text())["jobs"]

    def accounts(self, job: str) -> dict[str, str]:
        """State of each element of a job in the accounts."""
        lines = self.cluster.run("sacct", "-nPX", "-o", "JobID,State", "-j", job).splitlines()
        return {line.split("|")[0]: line.split("|")[1].split()[0] for line in lines}

    def until(self, is_true: Callable[[], bool], seconds: float = CHAIN_S) -> None:
        def complaint() -> str:
            logs = [p for p in self.folder.rglob("*.log") if p.stat().st_mtime > time.time() - 300]
            tails = "\n".join(f"{p}:\n{p.read_text(errors='replace')[-600:]}" for p in sorted(logs))
            return f"{self.cluster.run('squeue', '-r')}\n{tails}"

        wait_for(is_true, seconds, complaint)


@pytest.fixture(scope="module")
def site(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A folder whose name has a space, with one packed data set below shards/."""
    folder = tmp_path_factory.mktemp("shared disk")
    make_shards(folder / "shards" / "tiny")
    return Site(cluster, folder)


def attempts(run_dir: Path) -> list[dict[str, Any]]:
    return (read_json(run_dir / "provenance.json") or {}).get("attempts", [])


def last_step(run_dir: Path) -> int:
    return max((line["step"] for line in read_metrics(run_dir)), default=0)


def test_a_study_goes_from_images_to_its_report_and_a_second_launch_adds_nothing(site: Site) -> None:
    words = ("--variant", "both", "--gpus", "2", "--data", "phantom:80", "--size", "32", *SHORT)
    done = site.launch(*words, "--wait", **LEAKED)
    assert done.returncode == 0, done.stderr
    assert site.status("phantom-80") == {"linear-s0": "done", "direct-s0": "done"}
    assert "smoke, not comparable" in done.stdout
    study_dir = site.folder / "runs" / "phantom-80"
    assert done.stdout.endswith(f"report: {study_dir / REPORT_FILE}\n")
    ids = site.jobs("phantom-80")
    assert site.accounts(ids["train"]) == {f"{ids['train']}_{k}": "COMPLETED" for k in (0, 1)}
    assert site.accounts(ids["evaluate"]) == {f"{ids['evaluate']}_{k}": "COMPLETED" for k in (0, 1)}
    (attempt,) = attempts(study_dir / "linear-s0")
    assert (attempt["job"], attempt["restart"], attempt["world_size"]) == (f"{ids['train']}_0", 0, 2)
    before = site.records("phantom-80")
    again = site.launch(*words)
    assert again.returncode == 0, again.stderr
    assert site.records("phantom-80") == before

    (study_dir / "direct-s0" / "scores.json").unlink()
    plan = site.launch(*words, "--dry-run").stdout
    assert re.findall(r"^(\w+)=\$\(sbatch", plan, re.M) == ["evaluate", "report"]
    assert "#SBATCH --array=1\n" in plan


def rank_pid(cluster: DevCluster, rank: int) -> int:
    """The process of one rank of the training job that runs on the cluster."""
    for pid in cluster.left_behind():
        process = Path(f"/proc/{pid}")
        is_rank = f"SLURM_PROCID={rank}".encode() in (process / "environ").read_bytes().split(b"\0")
        if is_rank and b"submitit.core._submit" in (process / "cmdline").read_bytes():
            return pid
    raise AssertionError(f"no process of rank {rank}")


def test_a_run_on_two_nodes_goes_on_however_it_is_interrupted(site: Site) -> None:
    words = ("--variant", "direct", "--gpus", "2", "--nodes", "2", "--data", "shards/tiny", *TINY)
    words = (*words, "--study", "cut", "--run.epochs", "1000", "--run.max_steps", "1500")
    assert site.launch(*words).returncode == 0
    element = f"{site.jobs('cut')['train']}_0"
    run_dir = site.folder / "runs" / "cut" / "direct-s0"

    def stop(*command: str) -> int:
        """Interrupt the run; returns the step at which it stopped."""
        site.cluster.run(*command, element)
        site.until(lambda: "PD" in site.cluster.run("squeue", "-rh", "-j", element, "-o", "%t"))
        return last_step(run_dir)

    # warned, as before a time limit: the job saves and has itself requeued
    site.until(lambda: last_step(run_dir) >= 20)
    assert site.status("cut") == {"direct-s0": "training"}
    assert site.launch(*words).returncode == 0
    assert len(site.records("cut")) == 3  # train, evaluate, report: none of them twice
    stopped_at = [0, stop("scancel", "--signal=USR2")]
    assert site.status("cut") == {"direct-s0": "queued"}
    # requeued from outside, as by preemption: the time between TERM and KILL is enough to save
    site.until(lambda: len(attempts(run_dir)) == 2)
    stopped_at.append(stop("scontrol", "requeue"))
    # one rank killed: the whole job ends at once, and launching again goes on
    site.until(lambda: len(attempts(run_dir)) == 3)
    os.kill(rank_pid(site.cluster, rank=1), signal.SIGKILL)
    site.until(lambda: site.status("cut") == {"direct-s0": "failed"}, 30)
    done = site.launch(*words, "--wait")
    assert done.returncode == 0, done.stderr

    made = attempts(run_dir)
    assert [a["restart"] for a in made] == [0, 1, 2, 0]
    assert [a["from_step"] for a in made[:3]] == stopped_at
    assert stopped_at[-1] <= made[3]["from_step"] < 1500
    assert {a["job"] for a in made[:3]} == {element}
    assert made[0]["nodes"] == "n[1-2]"
    assert not list(run_dir.glob(".rendezvous*"))


def test_a_run_that_fails_holds_up_neither_the_other_nor_the_report(site: Site) -> None:
    words = ("--variant", "both", "--gpus", "1", "--data", "shards/tiny", "--study", "half", *SHORT)
    (site.folder / "runs" / "half" / "linear-s0").mkdir(parents=True)
    (site.folder / "runs" / "half" / "linear-s0" / "logs").write_text("in the way of the folder")
    done = site.launch(*words, "--wait")
    assert done.returncode == 1, done.stderr
    assert site.status("half") == {"linear-s0": "failed", "direct-s0": "done"}
    assert (site.folder / "runs" / "half" / REPORT_FILE).exists()
    ids = site.jobs("half")
    assert site.accounts(ids["train"]) == {f"{ids['train']}_0": "FAILED", f"{ids['train']}_1": "COMPLETED"}
    evaluations = site.accounts(ids["evaluate"])
    assert evaluations[f"{ids['evaluate']}_1"] == "COMPLETED"
    assert evaluations.get(f"{ids['evaluate']}_0", "CANCELLED") == "CANCELLED"


def test_what_is_queued_is_not_queued_again_and_what_is_cancelled_is(site: Site) -> None:
    later = site.folder / "later.yaml"
    later.write_text(Path(PROFILE).read_text() + "extra: {begin: now+1hour}\n")
    words = ("--variant", "both", "--gpus", "1", "--data", "shards/tiny", "--study", "later", *SHORT)
    assert site.launch(*words, profile=str(later)).returncode == 0
    assert site.status("later") == {"linear-s0": "queued", "direct-s0": "queued"}
    assert "nothing is missing" in site.launch(*words, "--dry-run").stdout
    train = site.jobs("later")["train"]
    site.cluster.run("scancel", f"{train}_1")
    site.until(lambda: site.status("later") == {"linear-s0": "queued", "direct-s0": "cancelled"})
    plan = site.launch(*words, "--dry-run").stdout
    assert re.findall(r"--array=(\S+)", plan)[0] == "1"
    for job in site.jobs("later").values():
        site.cluster.run("scancel", job)


def test_what_slurm_will_not_accept_is_said_before_anything_is_queued(site: Site) -> None:
    words = ("--variant", "linear", "--data", "shards/tiny", "--study", "greedy", *SHORT)
    done = site.launch(*words, "--gpus", "8")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2].startswith("error: SLURM does not accept the job greedy-train: ")
    assert not (site.folder / "runs" / "greedy" / "jobs.json").exists()
    assert not (site.folder / "runs" / "greedy" / "study.yaml").exists()


def test_scripts_by_hand_train_requeue_and_score(site: Site) -> None:
    study_dir = site.folder / "runs" / "hand"
    shards = site.folder / "shards" / "tiny"
    for variant, steps in (("linear", 400), ("direct", 10)):
        make_run(study_dir / f"{variant}-s0", shards, variant=variant, epochs=1000, max_steps=steps)
    prepare_study(study_dir, Study("hand", ("linear-s0", "direct-s0"), "smoke"))

    def sbatch(script: str, *flags: str) -> str:
        path = str(REPOSITORY / "slurm" / "scripts" / script)
        words = ["sbatch", "--parsable", "--array=0-1", "--time=5", "--signal=USR2@60", "--cpus-per-task=1"]
        env = {**site.cluster.env, "PYTHON": sys.executable}
        output = f"--output={site.folder}/hand-%A_%a.log"
        command = [*words, output, *flags, path, str(study_dir)]
        asked = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True)
        return asked.stdout.strip()

    train = sbatch("train.sbatch")
    evaluate = sbatch("evaluate.sbatch", f"--dependency=aftercorr:{train}")
    element, run_dir = f"{train}_0", study_dir / "linear-s0"
    site.until(lambda: "R" in site.cluster.run("squeue", "-rh", "-j", element, "-o", "%t"))
    site.cluster.run("scancel", "--signal=USR2", element)  # Python is not there yet, or busy importing
    site.until(lambda: last_step(run_dir) >= 20)
    assert site.status("hand")["linear-s0"] == "training"
    site.cluster.run("scancel", "--signal=USR2", element)
    site.until(lambda: site.status("hand") == {"linear-s0": "done", "direct-s0": "done"})
    restarts = [a["restart"] for a in attempts(run_dir)]
    assert restarts[0] == 0
    assert restarts[-1] >= 1
    site.cluster.wait_until_idle(30)
    for job in (train, evaluate):
        assert set(site.accounts(job).values()) == {"COMPLETED"}

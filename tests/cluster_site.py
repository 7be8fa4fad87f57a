"""A folder on the disk of the test cluster from which studies are launched, and what can be seen of them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from devcluster import DevCluster, wait_for
from doors import run_door
from tiny import REPOSITORY, TINY_FLAGS, make_shards

from slurm.job_records import JobRecord, read_records
from slurm.node.task import JobKind
from vae.metrics import read_metrics

PROFILE = str(Path(__file__).parent / "devcluster.yaml")
TINY = (*TINY_FLAGS, "--run.log_every_steps", "5")
SHORT = (*TINY, "--run.epochs", "1")
CHAIN_S = 480  # seconds on a machine that does nothing else; other work may be beside it


class Site:
    """A folder on the cluster's shared disk from which studies are launched."""

    def __init__(self, cluster: DevCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder

    def launch(
        self, *words: str, profile: str = PROFILE, repository: Path = REPOSITORY, **env: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(repository / "jobs" / "launch.py"), "--profile", profile, *words]
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.cluster.env, **env},
            capture_output=True,
            text=True,
            timeout=CHAIN_S,
        )

    def look(self, name: str, *words: str) -> str:
        """What a front door that only looks prints; it must end well.

        It is called in this process: asked again and again, it would take the cores from the jobs otherwise.
        """
        with mock.patch.dict(os.environ, self.cluster.env, clear=True):
            done = run_door(name, *words, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def order(self, name: str, *words: str) -> str:
        """What a front door that acts prints, from a process of its own; it must end well."""
        command = [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.cluster.env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self, study: str) -> dict[str, str]:
        """State of each run, as jobs/status.py shows it."""
        return dict(re.findall(r"^(\w+-s\d+) +([a-z]+)", self.look("status", study), re.M))

    def jobs(self, study: str) -> dict[JobKind, str]:
        """The id of the newest job of each kind."""
        return {job.kind: job.id for job in self.records(study)}

    def records(self, study: str) -> list[JobRecord]:
        return read_records(self.folder / "runs" / study)

    def profile(self, name: str, more: str) -> str:
        """A file with the test cluster's profile and further lines."""
        path = self.folder / f"{name}.yaml"
        path.write_text(Path(PROFILE).read_text() + more)
        return str(path)

    def has_ended(self, job: str, states: dict[int, str]) -> bool:
        """Whether the accounts, where there are any, know the elements of a job in these states."""
        wanted = {f"{job}_{index}": state for index, state in states.items()}
        return not self.cluster.has_accounting or self.accounts(job) == wanted

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


def make_site(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A folder whose name has a space, with one packed data set below shards/."""
    folder = tmp_path_factory.mktemp("shared disk")
    make_shards(folder / "shards" / "tiny")
    return Site(cluster, folder)


@pytest.fixture(scope="module", params=["cluster", "bare_cluster"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with accounts, and one without: everything must work at both."""
    return make_site(request.getfixturevalue(request.param), tmp_path_factory)


@pytest.fixture(scope="module")
def full_site(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(cluster, tmp_path_factory)


@pytest.fixture(scope="module")
def bare_site(bare_cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(bare_cluster, tmp_path_factory)


def last_step(run_dir: Path) -> int:
    return max((line.step for line in read_metrics(run_dir)), default=0)

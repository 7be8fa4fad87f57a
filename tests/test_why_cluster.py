"""`why` on a real cluster, with accounts and without: what often fails at a new site, in a sentence."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cluster_site import SHORT, Site, make_site
from devcluster import DevCluster, running

from slurm.job_records import read_records
from slurm.node.task import JobKind

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

# Memory that is asked for is watched, every second.
WATCHED = """\
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=1500
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=task=1
"""
# Lmod has no command line here: the shell function that it defines, which says what it says and fails.
LMOD = """\
setup:
  - "module() { echo 'Lmod has detected the following error: The following module(s)' >&2; false; }"
  - "module load cuda/99"
"""
# What is wrong with the profile, and what is said: cause and next step.
PROFILES = {
    "gres": (
        "setup: ['export SLURM_GRES=gpu:fake:9']\n",
        "asked for GPUs (gres)",
        "correct gpu_type or gpu_flag",
    ),
    "command": ("setup: ['module load cuda']\n", "found no command `module`", "begin setup with the line"),
    "lmod": (LMOD, "could not load a module", "correct it in setup"),
    "container": (
        "container: apptainer exec x.sif\n",
        "found no such program",
        "correct python or container",
    ),
    "python": ("python: /no/python\n", "found no such program on its node", "correct python or container"),
    "bare": ("python: /usr/bin/python3\n", "runs a Python that lacks a module", "pip install -e ."),
    "activate": ("setup: ['source /no/activate']\n", "failed in one of its setup lines", "correct setup"),
    "memory": ("extra: {mem: 100M}\n", "ran out of memory and was killed", "mem_per_gpu_gb"),
}


@pytest.fixture(scope="module", params=[True, False], ids=["accounts", "no accounts"])
def strict_site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("strict")
    for cluster in running(DevCluster(folder, has_accounting=request.param, settings=WATCHED)):
        yield make_site(cluster, tmp_path_factory)


@pytest.fixture
def tiny_disk(strict_site: Site) -> Iterator[Path]:
    """A disk with room for a study's first files, and hardly more."""
    folder = strict_site.folder / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def launch(site: Site, study_dir: Path, profile: str) -> None:
    words = ("--variant", "direct", "--gpus", "1", "--data", "shards/tiny", *SHORT)
    words = (*words, "--runs-dir", str(study_dir.parent), "--study", study_dir.name)
    done = site.launch(*words, profile=profile)
    assert done.returncode == 0, done.stderr


def why(site: Site, study_dir: Path, cause: str, step: str) -> None:
    """Wait until the run has failed, and compare what is said of it."""
    site.until(lambda: site.status(str(study_dir))["direct-s0"] in ("failed", "stopped"), 90)
    said = site.look("why", str(study_dir))
    assert said.startswith("direct-s0: the training job "), said
    assert f" {cause}" in said, said
    assert step in said.partition(cause)[2], said
    assert said.count("\n") == 1, said


def test_what_fails_at_a_new_site_is_named_with_the_next_step(strict_site: Site) -> None:
    """All at once, each in a study of its own."""
    site, runs = strict_site, strict_site.folder / "runs"
    for name, (lines, _, _) in PROFILES.items():
        launch(site, runs / name, site.profile(name, lines))
    for name, (_, cause, step) in PROFILES.items():
        why(site, runs / name, cause, step)


def test_a_full_disk_is_named_even_if_no_log_could_be_written(strict_site: Site, tiny_disk: Path) -> None:
    site, study_dir = strict_site, tiny_disk / "full"
    launch(site, study_dir, site.profile("held", "extra: {hold: ''}\n"))
    (train,) = (job.id for job in read_records(study_dir) if job.kind is JobKind.TRAIN)
    with suppress(OSError), (tiny_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with suppress(OSError), (tiny_disk / "rest").open("wb", buffering=0) as file:
        while True:
            file.write(b"0")
    site.cluster.run("scontrol", "release", train)
    why(site, study_dir, "found the disk full", "free space (df -h shows where)")


def test_a_job_that_was_put_back_and_held_says_how_it_is_released(strict_site: Site) -> None:
    site, study_dir = strict_site, strict_site.folder / "runs" / "put-back"
    launch(site, study_dir, site.profile("later", "extra: {begin: now+1hour}\n"))
    (train,) = (job.id for job in read_records(study_dir) if job.kind is JobKind.TRAIN)
    site.cluster.run("scontrol", "update", f"JobId={train}", "StartTime=now")
    site.until(lambda: "R" in site.cluster.run("squeue", "-rh", "-j", train, "-o", "%t"), 60)
    site.cluster.run("scontrol", "requeuehold", f"{train}_0")
    held = "put it back into the queue and holds it (job requeued in held state); python jobs/throttle.py "
    site.until(lambda: held in site.look("why", "put-back"), 30)
    assert "released: train direct-s0" in site.order("throttle", "put-back", "release")
    site.until(lambda: held not in site.look("why", "put-back"), 30)
    site.order("cancel", "put-back")

"""A cancel is final on a real cluster, whatever was noted before: nothing is requeued, nothing comes back."""

import re
import time
from pathlib import Path

import pytest
from cluster_site import TINY, Site, last_step

from slurm.node.task import JobKind
from vae.events import read_events
from vae.run_dir import is_saving, log_path

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TRAINING = ("starting", "warned while starting", "warned", "saving")
SCORING = ("scoring", "warned while scoring")
# Longer than the cluster holds a requeued job (7 s); what comes back is back by then.
COMES_BACK_S = 9.0


def launch(site: Site, name: str, runs: int, steps: int, *more: str) -> None:
    """Launch a study of so many runs that save most of the time."""
    words = ("--variant", "direct", "--gpus", "1", "--data", "shards/tiny", "--study", name, *TINY)
    words = (*words, "--run.epochs", "100000", "--run.max_steps", str(steps), *more)
    seeds = map(str, range(runs))
    done = site.launch(*words, "--run.checkpoint_every_min", "0.0005", "--seeds", *seeds)
    assert done.returncode == 0, done.stderr


def job_of(site: Site, name: str, kind: JobKind, index: int) -> str:
    jobs = [job for job in site.records(name) if job.kind is kind and index in job.indices]
    return jobs[-1].array_task(index)


def bring_to(site: Site, run_dir: Path, moment: str, job: str, kind: JobKind) -> None:
    """Return when a run's job has come to a moment."""
    site.until(log_path(run_dir, kind, f"{job}-r0", 0).exists, 120)
    if moment in ("warned", "saving"):
        site.until(lambda: last_step(run_dir) >= 20, 60)
    if "warned" in moment:
        site.cluster.run("scancel", "--signal=USR2", job)
    if moment == "saving":
        site.until(lambda: is_saving(run_dir), 60)


@pytest.mark.parametrize("is_plain", [False, True], ids=["by the door", "by scancel"])
def test_nothing_comes_back_after_a_cancel_at_any_moment(site: Site, is_plain: bool) -> None:
    """A run for each moment; then time for all of them to come back."""
    how = "plain" if is_plain else "door"
    launch(site, f"{how}-long", len(TRAINING), steps=80_000)
    # one at a time: a scoring is over before another one is cancelled
    launch(site, f"{how}-short", len(SCORING), 10, "--max-parallel", "1")
    cancelled: dict[str, tuple[str, Path]] = {}
    for name, kind, moments in (
        (f"{how}-long", JobKind.TRAIN, TRAINING),
        (f"{how}-short", JobKind.EVALUATE, SCORING),
    ):
        for index, moment in enumerate(moments):
            # a job that has come to the moment
            run_dir = site.folder / "runs" / name / f"direct-s{index}"
            job = job_of(site, name, kind, index)
            bring_to(site, run_dir, moment, job, kind)
            # its end
            cancelled[moment] = job, run_dir
            if is_plain:
                site.cluster.run("scancel", job)
            else:
                lines = site.order("cancel", f"{name}/{run_dir.name}")
                assert re.search(rf"^cancelled: {kind} {run_dir.name} \(job {job}\)$", lines, re.M), moment
                assert job not in site.cluster.run("squeue", "-rh", "-o", "%i").split(), moment

    def left() -> list[str]:
        queued = site.cluster.run("squeue", "-rh", "-o", "%i").split()
        return [moment for moment, (job, _) in cancelled.items() if job in queued]

    site.until(lambda: left() == [], 30)
    time.sleep(COMES_BACK_S)
    assert left() == []
    for moment, (job, run_dir) in cancelled.items():
        assert not list(run_dir.glob(f"logs/*-{job}-r1-*")), moment
        if moment in ("warned", "saving"):
            assert read_events(run_dir)[-1].step == last_step(run_dir), "it has saved first"
    for job, _ in cancelled.values():  # what has waited for them
        site.cluster.succeeds("scancel", job.partition("_")[0])

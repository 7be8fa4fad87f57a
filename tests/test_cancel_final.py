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

MOMENTS = ("starting", "warned while starting", "warned", "saving", "scoring", "warned while scoring")
# Longer than the cluster holds a requeued job (7 s); what comes back is back by then.
COMES_BACK_S = 9.0


def launch(site: Site, name: str, steps: int) -> Path:
    """Launch a study of one run; returns the folder of the run."""
    words = ("--variant", "direct", "--gpus", "1", "--data", "shards/tiny", "--study", name, *TINY)
    words = (*words, "--run.epochs", "100000", "--run.max_steps", str(steps))
    done = site.launch(*words, "--run.checkpoint_every_min", "0.0005")  # saves most of the time
    assert done.returncode == 0, done.stderr
    return site.folder / "runs" / name / "direct-s0"


def begun(run_dir: Path, kind: JobKind, job: str, restart: int = 0) -> bool:
    return log_path(run_dir, kind, f"{job}-r{restart}", 0).exists()


def bring_to(site: Site, run_dir: Path, moment: str, job: str, kind: JobKind) -> None:
    """Return when a run's job has come to a moment."""
    site.until(lambda: begun(run_dir, kind, job), 120)
    if moment in ("warned", "saving"):
        site.until(lambda: last_step(run_dir) >= 20, 60)
    if "warned" in moment:
        site.cluster.run("scancel", "--signal=USR2", job)
    if moment == "saving":
        site.until(lambda: is_saving(run_dir), 60)


@pytest.mark.parametrize("is_plain", [False, True], ids=["by the door", "by scancel"])
def test_nothing_comes_back_after_a_cancel_at_any_moment(site: Site, is_plain: bool) -> None:
    """All moments at once, each with a study of its own; then time for all of them to come back."""
    how = "plain" if is_plain else "door"
    cancelled: dict[str, str] = {}
    for number, moment in enumerate(MOMENTS):
        # a job that has come to the moment
        kind = JobKind.EVALUATE if "scoring" in moment else JobKind.TRAIN
        name = f"{how}-{number}"
        run_dir = launch(site, name, steps=10 if kind is JobKind.EVALUATE else 80_000)
        job = f"{site.jobs(name)[kind]}_0"
        bring_to(site, run_dir, moment, job, kind)
        # its end
        if is_plain:
            site.cluster.run("scancel", job)
        else:
            lines = site.order("cancel", f"{name}/direct-s0")
            assert re.search(rf"^cancelled: {kind} direct-s0 \(job {job}\)$", lines, re.M), moment
            assert job not in site.cluster.run("squeue", "-rh"), moment
        cancelled[moment] = job

    def left() -> list[str]:
        queued = site.cluster.run("squeue", "-rh", "-o", "%i").split()
        return [moment for moment, job in cancelled.items() if job in queued]

    site.until(lambda: left() == [], 30)
    time.sleep(COMES_BACK_S)
    assert left() == []
    for number, (moment, job) in enumerate(cancelled.items()):
        run_dir = site.folder / "runs" / f"{how}-{number}" / "direct-s0"
        for kind in (JobKind.TRAIN, JobKind.EVALUATE):
            assert not begun(run_dir, kind, job, restart=1), moment
        if moment in ("warned", "saving"):
            assert read_events(run_dir)[-1].step == last_step(run_dir), "it has saved first"

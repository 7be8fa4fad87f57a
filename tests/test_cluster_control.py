"""cancel, throttle, why and logs on a real cluster: two stories of a study."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_site import PROFILE, SHORT, TINY, Site, last_step
from tiny import REPOSITORY

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def door(name: str, *words: str, folder: Path, env: dict[str, str]) -> str:
    """What a front door prints; it must end well."""
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cancelled(place: Site) -> str:
    """What `status` calls a run whose job was cancelled: without accounts nobody knows how it ended."""
    return "cancelled" if place.cluster.has_accounting else "stopped"


class Queued:
    """A study of two runs whose jobs wait for an hour, and the doors that act on it."""

    def __init__(self, place: Site, name: str) -> None:
        self.site = place
        later = place.folder / "an hour later.yaml"
        later.write_text(Path(PROFILE).read_text() + "extra: {begin: now+1hour}\n")
        words = ("--variant", "both", "--gpus", "1", "--data", "shards/tiny", "--study", name, *SHORT)
        done = place.launch(*words, profile=str(later))
        assert done.returncode == 0, done.stderr
        self.ids = place.jobs(name)

    def door(self, name: str, *words: str) -> str:
        return door(name, *words, folder=self.site.folder, env=self.site.cluster.env)

    def queue(self, form: str) -> dict[str, str]:
        """One field of squeue by element, of this study's jobs."""
        ids = ",".join(self.ids.values())
        shown = self.site.cluster.run("squeue", "-rh", "-j", ids, "-o", f"%i|{form}")
        return dict(line.strip().split("|") for line in shown.splitlines())


def test_a_queued_study_is_explained_throttled_held_released_and_cancelled(site: Site) -> None:
    study = Queued(site, "waiting")
    train, evaluate, report = (study.ids[kind] for kind in ("train", "evaluate", "report"))
    site.until(lambda: study.queue("%r")[f"{train}_1"] == "BeginTime", 60)
    lines = study.door("why", "waiting").splitlines()
    assert len(lines) == 2
    pattern = r"it starts at .*\d\d:\d\d, not before its begin time \(BeginTime\); nothing to do\."
    assert re.fullmatch(f"direct-s0: is queued: {pattern}", lines[1])

    assert f"at most 1 at once: train (job {train})" in study.door("throttle", "waiting", "1")
    shown = site.cluster.run("scontrol", "show", "job", train)
    assert set(re.findall(r"ArrayTaskThrottle=(\d+)", shown)) == {"1"}
    study.door("throttle", "waiting", "hold")
    assert {study.queue("%r")[f"{train}_{k}"] for k in (0, 1)} == {"JobHeldUser"}
    assert "held by its owner (JobHeldUser); python jobs/throttle.py runs/waiting release." in study.door(
        "why", "waiting/linear-s0"
    )
    study.door("throttle", "waiting", "release")
    site.until(lambda: study.queue("%r")[f"{train}_0"] == "BeginTime", 60)

    lines = study.door("cancel", "waiting/direct-s0").splitlines()
    assert lines == [
        f"cancelled: evaluate direct-s0 (job {evaluate}_1)",
        f"cancelled: train direct-s0 (job {train}_1)",
    ]
    site.until(lambda: set(study.queue("%t")) == {f"{train}_0", f"{evaluate}_0", report}, 60)
    # it never ran, so the accounts have no line of it, only of its array
    site.until(lambda: site.status("waiting")["direct-s0"] == cancelled(site), 60)
    how = (
        "was cancelled before it started; run" if site.cluster.has_accounting else "ended before the run was"
    )
    assert f"the training job {train}_1 {how}" in study.door("why", "waiting")

    records = site.records("waiting")
    assert len(study.door("cancel", "waiting").splitlines()) == 3
    site.until(lambda: study.queue("%t") == {}, 60)
    assert study.door("cancel", "waiting") == "nothing of waiting is queued or running\n"
    assert site.records("waiting") == records
    site.until(lambda: set(site.status("waiting").values()) == {cancelled(site)}, 60)


def test_a_running_study_saves_when_cancelled_and_goes_on_and_its_logs_are_shown(site: Site) -> None:
    words = ("--variant", "both", "--gpus", "1", "--data", "shards/tiny", "--study", "ended", *TINY)
    words = (*words, "--run.epochs", "10000", "--max-parallel", "1")
    (site.folder / "runs" / "ended" / "direct-s0").mkdir(parents=True)
    (site.folder / "runs" / "ended" / "direct-s0" / "logs").write_text("in the way of the folder")
    assert site.launch(*words).returncode == 0
    train = site.jobs("ended")["train"]
    run_dir = site.folder / "runs" / "ended" / "linear-s0"

    def act(name: str, *more: str) -> str:
        return door(name, *more, folder=site.folder, env=site.cluster.env)

    site.until(lambda: last_step(run_dir) >= 20, 60)
    text = act("why", "ended")
    assert re.search(r"^linear-s0: is training at step \d+ of 80,000 in job \d+_0; nothing", text)
    assert "as many runs of the study as allowed are running (JobArrayTaskLimit)" in text
    act("throttle", "ended", "2")
    failed = "failed" if site.cluster.has_accounting else "stopped"
    site.until(lambda: site.status("ended")["direct-s0"] == failed, 60)
    text = act("why", "ended/direct-s0")
    assert f"the training job {train}_1 failed: FileExistsError: [Errno 17] File exists: " in text
    assert act("logs", "ended/direct-s0", "--lines", "1").startswith("FileExistsError: ")

    assert f"cancelled: train linear-s0 (job {train})" in act("cancel", "ended")
    site.until(lambda: site.status("ended")["linear-s0"] == cancelled(site), 60)
    text = act("why", "ended/linear-s0")
    assert re.search(r"was cancelled at step \d+ of 80,000, saved at step \d+; run the same", text)
    assert list(run_dir.glob("checkpoints/step_*"))
    assert act("logs", "ended/linear-s0", "--list").startswith(
        f"1  train, job {train}_0; rank 0; last written"
    )
    assert f"{train}_0" not in site.cluster.run("squeue", "-rh")

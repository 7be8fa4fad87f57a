"""cancel, throttle, why and logs on a real cluster: two stories of a study."""

import re
from pathlib import Path

import pytest
from cluster_site import PROFILE, SHORT, TINY, Site, last_step

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


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

    def queue(self, form: str) -> dict[str, str]:
        """One field of squeue by element, of this study's jobs."""
        ids = ",".join(self.ids.values())
        shown = self.site.cluster.run("squeue", "-rh", "-j", ids, "-o", f"%i|{form}")
        return dict(line.strip().split("|") for line in shown.splitlines())


def test_a_queued_study_is_explained_throttled_held_released_and_cancelled(site: Site) -> None:
    study = Queued(site, "waiting")
    train, evaluate, report = (study.ids[kind] for kind in ("train", "evaluate", "report"))
    site.until(lambda: study.queue("%r")[f"{train}_1"] == "BeginTime", 60)
    lines = site.look("why", "waiting").splitlines()
    assert len(lines) == 2
    pattern = r"it starts at .*\d\d:\d\d, not before its begin time \(BeginTime\); nothing to do\."
    assert re.fullmatch(f"direct-s0: is queued: {pattern}", lines[1])

    assert f"at most 1 at once: train (job {train})" in site.order("throttle", "waiting", "1")
    shown = site.cluster.run("scontrol", "show", "job", train)
    assert set(re.findall(r"ArrayTaskThrottle=(\d+)", shown)) == {"1"}
    site.order("throttle", "waiting", "hold")
    assert {study.queue("%r")[f"{train}_{k}"] for k in (0, 1)} == {"JobHeldUser"}
    assert "held by its owner (JobHeldUser); python jobs/throttle.py runs/waiting release." in site.look(
        "why", "waiting/linear-s0"
    )
    site.order("throttle", "waiting", "release")
    site.until(lambda: study.queue("%r")[f"{train}_0"] == "BeginTime", 60)

    lines = site.order("cancel", "waiting/direct-s0").splitlines()
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
    assert f"the training job {train}_1 {how}" in site.look("why", "waiting")

    records = site.records("waiting")
    assert len(site.order("cancel", "waiting").splitlines()) == 3
    site.until(lambda: study.queue("%t") == {}, 60)
    assert site.order("cancel", "waiting") == "nothing of waiting is queued or running\n"
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

    site.until(lambda: last_step(run_dir) >= 20, 60)
    text = site.look("why", "ended")
    assert re.search(r"^linear-s0: is training at step \d+ of 80,000 in job \d+_0; nothing", text)
    assert "as many runs of the study as allowed are running (JobArrayTaskLimit)" in text
    site.order("throttle", "ended", "2")
    failed = "failed" if site.cluster.has_accounting else "stopped"
    site.until(lambda: site.status("ended")["direct-s0"] == failed, 60)
    text = site.look("why", "ended/direct-s0")
    assert f"the training job {train}_1 failed: FileExistsError: [Errno 17] File exists: " in text
    assert site.look("logs", "ended/direct-s0", "--lines", "1").startswith("FileExistsError: ")

    assert f"cancelled: train linear-s0 (job {train})" in site.order("cancel", "ended")
    site.until(lambda: site.status("ended")["linear-s0"] == cancelled(site), 60)
    text = site.look("why", "ended/linear-s0")
    assert re.search(r"was cancelled at step \d+ of 80,000, saved at step \d+; run the same", text)
    assert list(run_dir.glob("checkpoints/step_*"))
    assert site.look("logs", "ended/linear-s0", "--list").startswith(
        f"1  train, job {train}_0; rank 0; last written"
    )
    assert f"{train}_0" not in site.cluster.run("squeue", "-rh", "-o", "%i").split()

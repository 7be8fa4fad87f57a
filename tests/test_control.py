"""slurm/control.py: cancel, hold, release and throttle, on a real cluster and on this machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from devcluster import wait_for
from test_cluster import PROFILE, SHORT, TINY, Site, last_step, site  # noqa: F401  (site is a fixture)
from tiny import REPOSITORY, child_environment, make_shards

from data_prep.errors import ClusterError
from slurm.client import OVER
from slurm.control import cancel, throttle
from slurm.diagnose.explain import AGAIN
from slurm.job_records import JobRecord, add_record, read_records
from vae.study import Study, prepare_study

STUDY = Study("chest", ("linear-s0", "direct-s0"), "smoke")


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


@pytest.mark.slurm
@pytest.mark.slow
def test_a_queued_study_is_explained_throttled_held_released_and_cancelled(site: Site) -> None:  # noqa: F811
    study = Queued(site, "waiting")
    train, evaluate, report = (study.ids[kind] for kind in ("train", "evaluate", "report"))
    site.until(lambda: study.queue("%r")[f"{train}_1"] == "BeginTime", 60)
    said = study.door("why", "waiting").splitlines()
    assert len(said) == 2
    pattern = r"it starts at .*\d\d:\d\d, not before its begin time \(BeginTime\); nothing to do\."
    assert re.fullmatch(f"direct-s0: is queued: {pattern}", said[1])

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

    said = study.door("cancel", "waiting/direct-s0").splitlines()
    assert said == [
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


@pytest.mark.slurm
@pytest.mark.slow
def test_a_running_study_saves_when_cancelled_and_goes_on_and_its_logs_are_shown(
    site: Site,  # noqa: F811
) -> None:
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
    said = act("why", "ended")
    assert re.search(r"^linear-s0: is training at step \d+ of 80,000 in job \d+_0; nothing", said)
    assert "as many runs of the study as allowed are running (JobArrayTaskLimit)" in said
    act("throttle", "ended", "2")
    failed = "failed" if site.cluster.has_accounting else "stopped"
    site.until(lambda: site.status("ended")["direct-s0"] == failed, 60)
    said = act("why", "ended/direct-s0")
    assert f"the training job {train}_1 failed: FileExistsError: [Errno 17] File exists: " in said
    assert act("logs", "ended/direct-s0", "--lines", "1").startswith("FileExistsError: ")

    assert f"cancelled: train linear-s0 (job {train})" in act("cancel", "ended")
    site.until(lambda: site.status("ended")["linear-s0"] == cancelled(site), 60)
    said = act("why", "ended/linear-s0")
    assert re.search(r"was cancelled at step \d+ of 80,000, saved at step \d+; run the same", said)
    assert list(run_dir.glob("checkpoints/step_*"))
    assert act("logs", "ended/linear-s0", "--list").startswith(
        f"1  train, job {train}_0; rank 0; last written"
    )
    assert f"{train}_0" not in site.cluster.run("squeue", "-rh")


# --- without SLURM -------------------------------------------------------------------------------


def test_nothing_is_changed_while_nobody_knows_what_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    add_record(tmp_path, JobRecord("8", "train", "slurm", True, (0, 1), "login"))
    with pytest.raises(ClusterError, match="nobody knows what is queued or running"):
        cancel(tmp_path, STUDY)
    with pytest.raises(ClusterError, match="nobody knows what is queued or running"):
        throttle(tmp_path, STUDY, "hold")


def test_a_study_without_jobs_has_nothing_to_cancel(tmp_path: Path) -> None:
    assert cancel(tmp_path, STUDY) == []
    assert throttle(tmp_path, STUDY, 2) == []


@pytest.mark.parametrize(
    ("said", "is_over"),
    [
        ("4_0-1: Job has already finished", True),
        ("scancel: error: Kill job error on job id 9: Invalid job id specified", True),
        ("Job/step already completing or completed", True),
        ("Access/permission denied", False),
        ("Unable to contact slurm controller (connect failure)", False),
    ],
)
def test_only_a_job_that_has_ended_may_refuse(said: str, is_over: bool) -> None:
    assert bool(OVER.search(said)) is is_over


@pytest.mark.parametrize("asked", ["0", "-1", "1.5", "stop", ""])
def test_a_throttle_is_a_number_hold_or_release(tmp_path: Path, asked: str) -> None:
    prepare_study(tmp_path / "chest", STUDY)
    command = [sys.executable, str(REPOSITORY / "jobs" / "throttle.py"), str(tmp_path / "chest"), "--", asked]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {asked!r} is not allowed\nhint: give a number from 1, hold or release\n"


def launch_here(folder: Path, variant: str, study: str) -> subprocess.Popen[str]:
    """A launcher that trains here for long, on tiny data in `folder`."""
    make_shards(folder / "shards" / "tiny")
    words = ["--variant", variant, "--data", "shards/tiny", "--study", study, "--cluster", "local", *TINY]
    command = [sys.executable, str(REPOSITORY / "jobs" / "launch.py"), *words, "--run.epochs", "10000"]
    return subprocess.Popen(command, cwd=folder, env=child_environment(), stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_local_study_is_cancelled_with_its_launcher_and_goes_on(tmp_path: Path) -> None:
    env, launcher = child_environment(), launch_here(tmp_path, "both", "here")
    study_dir = tmp_path / "runs" / "here"
    try:
        wait_for(lambda: last_step(study_dir / "linear-s0") >= 20, 120, lambda: str(launcher.poll()))
        (record,) = read_records(study_dir)
        said = door("why", "here", folder=tmp_path, env=env).splitlines()
        assert re.fullmatch(r"linear-s0: is training at step \d+ of 80,000; nothing to do\.", said[0])
        assert f"direct-s0: is not trained and waits for its turn after process {record.id}," in said[1]
        said = door("cancel", "here", folder=tmp_path, env=env).splitlines()
        assert said == [f"cancelled: train linear-s0 (process {record.id})"]
        assert launcher.wait(60) == 130
    finally:
        launcher.terminate()  # ends its job, too
        launcher.communicate()
    assert [known.id for known in read_records(study_dir)] == [record.id]  # the other run was not begun
    assert list((study_dir / "linear-s0").glob("checkpoints/step_*"))
    assert door("cancel", "here", folder=tmp_path, env=env) == "nothing of here is queued or running\n"
    said = door("why", "here", folder=tmp_path, env=env).splitlines()
    step = last_step(study_dir / "linear-s0")
    cause = f"was cancelled at step {step:,} of 80,000, saved at step {step:,}"
    assert said[0] == f"linear-s0: the training process {record.id} {cause}; {AGAIN}."
    shown = door("status", "here", folder=tmp_path, env=env)
    assert re.search(rf"^linear-s0 +cancelled .* saved at step {step:,}$", shown, re.M)
    assert said[1] == "direct-s0: has not been launched yet; launch it."
    assert "step 5 of 80000" in door("logs", "here/linear-s0", folder=tmp_path, env=env)


@pytest.mark.slow
def test_one_local_run_is_cancelled_and_its_launcher_says_so_and_goes_on(tmp_path: Path) -> None:
    env, launcher = child_environment(), launch_here(tmp_path, "linear", "one")
    run_dir = tmp_path / "runs" / "one" / "linear-s0"
    try:
        wait_for(lambda: last_step(run_dir) >= 20, 120, lambda: str(launcher.poll()))
        door("cancel", "one/linear-s0", folder=tmp_path, env=env)
        _, said = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == 1
    assert "failed: train linear-s0 was cancelled\n" in said
    assert (tmp_path / "runs" / "one" / "report.html").exists()

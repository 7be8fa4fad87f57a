"""The whole chain on a real two-node SLURM cluster: nothing here is simulated but the GPUs."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_site import CHAIN_S, SHORT, TINY, Site, last_step
from devcluster import DevCluster
from tiny import REPOSITORY, TINY_FLAGS, make_run, write_attempts

from data_prep.verify import verify
from slurm.job_records import read_records
from slurm.node.task import JobKind
from vae.events import Saved, by_attempt, read_events
from vae.provenance import Attempt, read_attempts, read_provenance
from vae.run_dir import REPORT_FILE, SCORES_FILE
from vae.study import Study, prepare_study

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

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
# What `status` calls a run whose job has failed: where there are no accounts, nobody knows how it ended.
ENDED = ("failed", "stopped")
AUTHOR = ("-c", "user.name=test", "-c", "user.email=test@localhost")


def test_a_study_goes_from_images_to_its_report_and_a_second_launch_adds_nothing(site: Site) -> None:
    words = ("--variant", "both", "--gpus", "2", "--data", "phantom:80", "--size", "32", *SHORT)
    done = site.launch(*words, "--wait", **LEAKED)
    assert done.returncode == 0, done.stderr
    assert site.status("phantom-80") == {"linear-s0": "done", "direct-s0": "done"}
    assert "smoke, not comparable" in done.stdout
    study_dir = site.folder / "runs" / "phantom-80"
    assert done.stdout.endswith(f"report: {study_dir / REPORT_FILE}\n")
    ids = site.jobs("phantom-80")
    for kind in ("train", "evaluate"):
        assert site.has_ended(ids[kind], {0: "COMPLETED", 1: "COMPLETED"})
    (attempt,) = read_attempts(study_dir / "linear-s0")
    assert (attempt.job, attempt.restart, attempt.world_size) == (f"{ids['train']}_0", 0, 2)
    before = site.records("phantom-80")
    again = site.launch(*words)
    assert again.returncode == 0, again.stderr
    assert site.records("phantom-80") == before

    (study_dir / "direct-s0" / SCORES_FILE).unlink()
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
    words = (*words, "--study", "cut", "--run.epochs", "1000", "--run.max_steps", "1000")
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
    site.until(lambda: len(read_attempts(run_dir)) == 2)
    stopped_at.append(stop("scontrol", "requeue"))
    # one rank killed: the whole job ends at once, and launching again goes on
    site.until(lambda: len(read_attempts(run_dir)) == 3)
    os.kill(rank_pid(site.cluster, rank=1), signal.SIGKILL)
    site.until(lambda: site.status("cut")["direct-s0"] in ENDED, 60)
    done = site.launch(*words, "--wait")
    assert done.returncode == 0, done.stderr

    attempts = read_attempts(run_dir)
    assert [attempt.restart for attempt in attempts] == [0, 1, 2, 0]
    assert [attempt.from_step for attempt in attempts[:3]] == stopped_at
    assert stopped_at[-1] <= attempts[3].from_step < 1000
    assert {attempt.job for attempt in attempts[:3]} == {element}
    assert attempts[0].nodes == "n[1-2]"
    courses = by_attempt(read_events(run_dir))
    assert [course.was_signalled for course in courses[:2]] == [True, True]
    assert [course.saved_step for course in courses[:3]] == [course.started.step for course in courses[1:]]
    assert not list(run_dir.glob(".rendezvous*"))
    logs = {path.name for path in (run_dir / "logs").glob("train-*")}
    assert {f"train-{element}-r{restart}-rank{rank}.log" for restart in (0, 1, 2) for rank in (0, 1)} <= logs


def test_a_run_that_fails_holds_up_neither_the_other_nor_the_report(site: Site) -> None:
    words = ("--variant", "both", "--gpus", "1", "--data", "shards/tiny", "--study", "half", *SHORT)
    (site.folder / "runs" / "half" / "linear-s0").mkdir(parents=True)
    (site.folder / "runs" / "half" / "linear-s0" / "logs").write_text("in the way of the folder")
    done = site.launch(*words, "--wait")
    assert done.returncode == 1, done.stderr
    states = site.status("half")
    assert states["linear-s0"] in ENDED
    assert states["direct-s0"] == "done"
    assert (site.folder / "runs" / "half" / REPORT_FILE).exists()
    ids = site.jobs("half")
    assert site.has_ended(ids["train"], {0: "FAILED", 1: "COMPLETED"})
    if site.cluster.has_accounting:
        evaluations = site.accounts(ids["evaluate"])
        assert evaluations[f"{ids['evaluate']}_1"] == "COMPLETED"
        assert evaluations.get(f"{ids['evaluate']}_0", "CANCELLED") == "CANCELLED"


def test_what_is_queued_is_not_queued_again_and_what_is_cancelled_is(site: Site) -> None:
    later = site.profile("later", "extra: {begin: now+1hour}\n")
    words = ("--variant", "both", "--gpus", "1", "--data", "shards/tiny", "--study", "later", *SHORT)
    assert site.launch(*words, profile=later).returncode == 0
    assert site.status("later") == {"linear-s0": "queued", "direct-s0": "queued"}
    assert "nothing is missing" in site.launch(*words, "--dry-run").stdout
    train = site.jobs("later")["train"]
    site.cluster.run("scancel", f"{train}_1")
    gone = "cancelled" if site.cluster.has_accounting else "stopped"  # nobody knows how
    site.until(lambda: site.status("later") == {"linear-s0": "queued", "direct-s0": gone})
    plan = site.launch(*words, "--dry-run").stdout
    assert re.findall(r"--array=(\S+)", plan)[0] == "1"
    for job in site.jobs("later").values():
        site.cluster.run("scancel", job)


def test_what_slurm_will_not_accept_is_said_before_anything_is_queued(site: Site) -> None:
    words = ("--variant", "linear", "--data", "shards/tiny", "--study", "greedy", *SHORT)
    done = site.launch(*words, "--gpus", "8")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2].startswith("error: SLURM does not accept the job greedy-train: ")
    assert not (site.folder / "runs" / "greedy").exists()


# Python for the scripts; in element 1 the first is killed, as by a warning before bash could ignore it.
EARLY = """#!/bin/bash
[ "$SLURM_ARRAY_TASK_ID-${{SLURM_RESTART_COUNT:-0}}" = 1-0 ] || exec {python} "$@"
exec {python} -c "import os, signal; signal.signal(12, signal.SIG_DFL); os.kill(os.getpid(), 12)"
"""


def test_scripts_by_hand_train_requeue_and_score(site: Site) -> None:
    study_dir = site.folder / "runs" / "hand"
    shards = site.folder / "shards" / "tiny"
    for variant, steps in (("linear", 1000), ("direct", 10)):
        make_run(study_dir / f"{variant}-s0", shards, variant=variant, epochs=1000, max_steps=steps)
    prepare_study(study_dir, Study("hand", ("linear-s0", "direct-s0"), "smoke"))
    python = site.folder / "python"
    python.write_text(EARLY.format(python=sys.executable))
    python.chmod(0o755)

    def sbatch(script: str, *flags: str) -> str:
        path = str(REPOSITORY / "slurm" / "scripts" / script)
        words = ["sbatch", "--parsable", "--array=0-1", "--time=5", "--signal=USR2@60", "--cpus-per-task=1"]
        env = {**site.cluster.env, "PYTHON": str(python)}
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
    site.cluster.run("scancel", "--signal=USR2", "--batch", element)  # the script alone is warned
    site.until(lambda: site.status("hand") == {"linear-s0": "done", "direct-s0": "done"})
    restarts = [attempt.restart for attempt in read_attempts(run_dir)]
    assert restarts == sorted(set(restarts))
    assert restarts[-1] >= 1
    assert [attempt.restart for attempt in read_attempts(study_dir / "direct-s0")] == [1]
    site.cluster.wait_until_idle(60)
    for job in (train, evaluate):
        assert site.has_ended(job, {0: "COMPLETED", 1: "COMPLETED"})


@pytest.mark.parametrize("flag", ["--batch", "--full"])
def test_a_warning_to_the_jobs_script_reaches_the_run(full_site: Site, flag: str) -> None:
    site, study = full_site, f"batch{flag}"
    words = ("--variant", "direct", "--gpus", "1", "--data", "shards/tiny", "--study", study, *TINY)
    assert site.launch(*words, "--run.epochs", "10000").returncode == 0
    run_dir = site.folder / "runs" / study / "direct-s0"
    site.until(lambda: last_step(run_dir) >= 20)
    site.cluster.run("scancel", "--signal=USR2", flag, f"{site.jobs(study)['train']}_0")
    site.until(lambda: len(read_attempts(run_dir)) == 2)
    site.order("cancel", study)
    first, second = read_attempts(run_dir)
    assert (second.job, second.restart) == (first.job, 1)
    assert second.from_step >= 20


def test_a_script_by_hand_asks_for_no_more_time_than_its_partition_gives(full_site: Site) -> None:
    cluster = full_site.cluster
    cluster.run("scontrol", "create", "PartitionName=short", "Nodes=n1", "MaxTime=60")
    script = str(REPOSITORY / "slurm" / "scripts" / "train.sbatch")
    cluster.run("sbatch", "--test-only", "--partition=short", "--array=0", script, "runs/x")


def test_scripts_by_hand_pack(full_site: Site) -> None:
    cluster, out = full_site.cluster, full_site.folder / "shards" / "by-hand"
    words = ["--array=0-1", "--time=5", "--cpus-per-task=1", f"--output={full_site.folder}/pack-%a.log"]
    script = str(REPOSITORY / "slurm" / "scripts" / "pack.sbatch")
    images = ("phantom:40", str(out))
    cluster.run("sbatch", f"--export=ALL,PYTHON={sys.executable}", *words, script, *images, cwd=REPOSITORY)
    cluster.wait_until_idle(CHAIN_S)
    pack = [sys.executable, str(REPOSITORY / "jobs" / "pack.py")]
    cluster.run(*pack, *images, "--finalize", timeout=CHAIN_S)
    assert verify(out) == 40


def test_a_preempted_run_goes_on_with_and_without_a_warning(site: Site) -> None:
    words = ("--variant", "direct", "--gpus", "1", "--data", "shards/tiny", "--study", "pushed", *TINY)
    words = (*words, "--run.epochs", "1000", "--run.max_steps", "1000")
    assert site.launch(*words).returncode == 0
    run_dir = site.folder / "runs" / "pushed" / "direct-s0"
    site.until(lambda: last_step(run_dir) >= 20)
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null")
    site.cluster.run("sbatch", *urgent, "--wrap=sleep 1")
    site.until(lambda: site.status("pushed") == {"direct-s0": "done"})
    first, second = read_attempts(run_dir)
    assert (first.job, second.restart) == (second.job, 1)
    assert second.from_step >= first.work.reached_step > 0


def test_a_time_limit_only_cuts_a_run_into_stretches(full_site: Site) -> None:
    site, words = full_site, ("--variant", "direct", "--gpus", "1", "--data", "shards/tiny", *TINY_FLAGS)
    words = (*words, "--study", "long", "--run.epochs", "100000", "--run.trackers", "[]")
    profile = site.profile("minute", "train_limit_min: 1\nwarning_s: 15\n")
    assert site.launch(*words, profile=profile).returncode == 0
    job, run_dir = site.jobs("long")["train"], site.folder / "runs" / "long" / "direct-s0"
    site.until(lambda: len(read_attempts(run_dir)) == 2)
    site.cluster.run("scancel", job)
    first, second = read_attempts(run_dir)
    saved = [event.step for event in read_events(run_dir) if isinstance(event, Saved)]
    assert second.from_step in saved
    assert second.from_step > 100
    assert (second.job, second.restart) == (first.job, 1)
    assert first.ends_s - first.allocated_s == 60
    assert first.ends_s - second.submitted_s > 5  # it was requeued before its time was up
    assert second.allocated_s > second.submitted_s


def test_what_was_launched_runs_whatever_is_edited_even_after_a_requeue_from_inside_a_container(
    full_site: Site, tmp_path: Path
) -> None:
    """The container is an environment without SLURM's programs: the job's script must requeue it."""
    site, copy = full_site, tmp_path / "code"
    for package in ("data_prep", "vae", "slurm", "jobs"):
        shutil.copytree(REPOSITORY / package, copy / package)
    for words in (["init", "-q"], ["add", "."], [*AUTHOR, "commit", "-qm", "as launched"]):
        subprocess.run(["git", *words], cwd=copy, check=True)
    with (copy / "vae" / "model.py").open("a") as file:
        file.write("# changed, not committed\n")
    words = ("--variant", "linear", "--gpus", "1", "--data", "shards/tiny", "--study", "kept", *TINY)
    words = (*words, "--run.epochs", "1000", "--run.max_steps", "500")
    more = "cpus_per_gpu: 2\ncontainer: env PATH=/nowhere\nextra: {hold: ''}\n"
    profile = site.profile("held", more)
    done = site.launch(*words, profile=profile, repository=copy)
    assert done.returncode == 0, done.stderr
    job, run_dir = site.jobs("kept")["train"], site.folder / "runs" / "kept" / "linear-s0"
    (run_dir.parent / "jobs" / f"{job}_0_0_result.pkl.save_tmp").write_text("left by a killed attempt")
    (copy / "vae" / "training" / "trainer.py").write_text("raise SystemExit('edited while the job waited')\n")
    for waiting in site.jobs("kept").values():
        site.cluster.run("scontrol", "release", waiting)
    site.until(lambda: last_step(run_dir) >= 20)
    site.cluster.run("scancel", "--signal=USR2", f"{job}_0")
    site.until(lambda: site.status("kept") == {"linear-s0": "done"})
    first, second = read_attempts(run_dir)
    assert [first.restart, second.restart] == [0, 1]
    assert first.cpus == 2
    assert first.gpus == 1
    provenance = read_provenance(run_dir)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=copy, capture_output=True, text=True, check=True)
    assert provenance.commit == head.stdout.strip()
    assert "+# changed, not committed" in provenance.diff
    (snapshot,) = (run_dir.parent / "code").iterdir()
    assert provenance.snapshot == snapshot.name


def test_a_study_above_the_sites_largest_array_is_split(bare_site: Site) -> None:
    words = ("--variant", "both", "--seeds", "0", "1", "--gpus", "1", "--study", "wide", *SHORT)
    done = bare_site.launch(*words, "--data", "shards/tiny", "--max-parallel", "3", "--wait")
    assert done.returncode == 0, done.stderr
    trained = [job for job in bare_site.records("wide") if job.kind is JobKind.TRAIN]
    assert [(job.indices, job.offset) for job in trained] == [((0, 1, 2), 0), ((3,), 3)]
    (attempt,) = read_attempts(bare_site.folder / "runs" / "wide" / "direct-s1")
    assert attempt.job == f"{trained[1].id}_0"
    plan = (bare_site.folder / "runs" / "wide" / "jobs" / f"{trained[0].id}.sbatch").read_text()
    assert "#SBATCH --array=0-2%2\n" in plan


def test_a_setup_line_that_fails_stops_the_job_and_the_next_launch_clears_away_what_waits_in_vain(
    full_site: Site,
) -> None:
    site, patient = full_site, "drop: [kill-on-invalid-dep]\n"
    words = ("--variant", "direct", "--gpus", "1", "--data", "shards/tiny", "--study", "vain", *SHORT)
    done = site.launch(*words, profile=site.profile("broken", patient + "setup: ['false']\n"))
    assert done.returncode == 0, done.stderr
    ids = site.jobs("vain")
    reason = ("squeue", "-rh", "-j", ids["evaluate"], "-o", "%r")
    site.until(lambda: "DependencyNeverSatisfied" in site.cluster.run(*reason))
    site.until(lambda: site.has_ended(ids["train"], {0: "FAILED"}), 60)  # the accounts lag behind
    assert site.status("vain") == {"direct-s0": "failed"}
    done = site.launch(*words, "--wait", profile=site.profile("patient", patient))
    assert done.returncode == 0, done.stderr
    assert f"cancelled, for what they waited for has failed: {ids['evaluate']}_0" in done.stderr


def test_a_warned_element_restarts_alone_and_its_delay_is_no_alarm(full_site: Site) -> None:
    """The last element's own id is that of the whole array: a requeue by that id would restart all."""
    site, words = full_site, ("--variant", "both", "--gpus", "1", "--data", "shards/tiny", *TINY)
    words = (*words, "--study", "alone", "--run.epochs", "1000", "--run.max_steps", "2000")
    assert site.launch(*words).returncode == 0
    job, study_dir = site.jobs("alone")["train"], site.folder / "runs" / "alone"
    first, last = study_dir / "linear-s0", study_dir / "direct-s0"
    site.until(lambda: min(last_step(first), last_step(last)) >= 20)
    assert site.cluster.run("squeue", "-rh", "-j", f"{job}_1", "-o", "%A").strip() == job
    site.cluster.run("scancel", "--signal=USR2", f"{job}_1")
    site.until(lambda: "BeginTime" in site.cluster.run("squeue", "-rh", "-j", f"{job}_1", "-o", "%r"))
    why = site.look("why", "alone/direct-s0")
    delayed = r"direct-s0: is queued: SLURM delays what was requeued; it restarts at \d\d:\d\d"
    assert re.match(delayed, why), why
    site.until(lambda: site.status("alone") == {"linear-s0": "done", "direct-s0": "done"})
    assert [len(read_attempts(run_dir)) for run_dir in (first, last)] == [1, 2]
    one, other = read_attempts(first)[0], read_attempts(last)[0]  # side by side, each with a GPU of its own
    assert (one.nodes, one.visible_gpus) != (other.nodes, other.visible_gpus)


def test_a_job_that_its_site_starts_over_and_over_in_vain_stops(full_site: Site) -> None:
    """Four earlier starts of this very job that got nowhere are put on record while it is held."""
    site, words = full_site, ("--variant", "direct", "--gpus", "1", "--data", "shards/tiny", *SHORT)
    profile = site.profile("held-once", "extra: {hold: ''}\n")
    assert site.launch(*words, "--study", "idle", profile=profile).returncode == 0
    job, run_dir = site.jobs("idle")["train"], site.folder / "runs" / "idle" / "direct-s0"
    write_attempts(run_dir, *[Attempt(job=f"{job}_0", from_step=0)] * 4)
    site.cluster.run("scontrol", "release", job)
    site.until(lambda: site.status("idle") == {"direct-s0": "failed"}, 60)
    assert "started 4 times at step 0 without getting further" in site.look("why", "idle/direct-s0")
    for waiting in site.jobs("idle").values():
        site.cluster.succeeds("scancel", waiting)


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has just ended
        return ""


def test_packing_that_is_warned_with_helpers_at_work_goes_on_and_leaves_no_process(full_site: Site) -> None:
    site, words = full_site, ("--variant", "direct", "--gpus", "1", "--data", "phantom:400", *SHORT)
    profile = site.profile("packing", "pack_jobs: 1\n")
    assert site.launch(*words, "--size", "256", profile=profile).returncode == 0
    data_dir = site.folder / "shards" / "phantom-400"
    job = {job.kind: job.id for job in read_records(data_dir)}[JobKind.PACK]
    site.until(lambda: any("multiprocessing.spawn" in command(pid) for pid in site.cluster.left_behind()))
    site.cluster.run("scancel", "--signal=USR2", f"{job}_0")
    site.until(lambda: site.status("phantom-400") == {"direct-s0": "done"})
    log = (data_dir / "jobs" / f"{job}_0_0.log").read_text()
    assert log.count(f"requeued job {job}_0") == 1
    assert verify(data_dir) == 400
    site.cluster.wait_until_idle(60)
    site.until(lambda: site.cluster.left_behind() == [], 60)


def test_a_job_that_starts_before_its_time_does_no_harm(full_site: Site) -> None:
    """SLURM takes a dependency on a job it has forgotten for met: what runs looks at the run itself."""
    study_dir = full_site.folder / "runs" / "early"
    run_dir = make_run(study_dir / "direct-s0", full_site.folder / "shards" / "tiny", variant="direct")
    prepare_study(study_dir, Study("early", ("direct-s0",), "smoke"))
    words = [
        "--array=0",
        "--time=5",
        f"--export=ALL,PYTHON={sys.executable}",
        "--cpus-per-task=1",
        f"--output={study_dir}/early.log",
    ]
    script = str(REPOSITORY / "slurm" / "scripts" / "evaluate.sbatch")
    full_site.cluster.run(
        *("sbatch", "--dependency=afterok:999999", *words, script, str(study_dir)),
        cwd=REPOSITORY,
    )
    log = run_dir / "logs"
    full_site.until(lambda: any("is not trained" in path.read_text() for path in log.glob("evaluate*")))
    assert not (run_dir / SCORES_FILE).exists()

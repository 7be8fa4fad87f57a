"""slurm/submit.py without SLURM: what sbatch is told and does not inherit; the same order done here."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep.errors import ClusterError
from slurm.client import PROGRAMS, require_slurm, slurm_answers
from slurm.job_records import read_records
from slurm.local import run_debug, run_local, visible_gpus
from slurm.node.environment import JobEnvironment
from slurm.node.task import Task
from slurm.plan import JobRequest, Resources
from slurm.profile import ClusterProfile
from slurm.submit import as_shell, choose_cluster, clean_environment, sbatch_command, script

STUDY = Path("/shared/runs/chest")
CODE = Path("/shared/runs/chest/code/0123456789ab")
TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Note(Task):
    """Writes down who it is; fails if its folder is called bad."""

    def work(self, place: JobEnvironment) -> None:
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank-{place.rank}-of-{place.world_size}").write_text(
            os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        )
        if folder.name == "bad":
            raise ValueError("bad folder\nwith a second line")
        if folder.name == "slow":
            time.sleep(60)


def plan(folder: Path, *names: str, gpus: int = 1) -> list[JobRequest]:
    """A training array, an evaluation array after it, and a report after that."""
    train = {i: Note(str(folder / "train" / name)) for i, name in enumerate(names)}
    score = {i: Note(str(folder / "score" / name)) for i, name in enumerate(names)}
    resources = Resources(gpus)
    return [
        JobRequest("train", "train", folder, train, resources=resources),
        JobRequest("evaluate", "evaluate", folder, score, ("aftercorr:train",), resources=resources),
        JobRequest(
            "report", "report", folder, {0: Note(str(folder / "report"))}, ("afterany:evaluate",), False
        ),
    ]


def watch_nothing(request: JobRequest, index: int) -> None:
    """Say nothing while local jobs run."""


def test_dependencies_name_the_ids_of_jobs_submitted_before() -> None:
    after = ("afterany:evaluate", "afterany:9_3")
    request = JobRequest("report", "report", STUDY, {}, after, is_array=False)
    assert sbatch_command(request, {"evaluate": "12"}) == [
        "sbatch",
        "--parsable",
        "--dependency=afterany:12,afterany:9_3",
    ]


def test_a_dry_run_writes_ids_it_does_not_know_as_shell_variables() -> None:
    request = JobRequest("evaluate-1", "evaluate", STUDY, {}, ("aftercorr:train",))
    text = as_shell(request, ["train", "evaluate-1"])
    assert text == "evaluate_1=$(sbatch --parsable --dependency=aftercorr:$train <<'EOF'"


def test_the_script_is_bash() -> None:
    for request in plan(STUDY, "a b"):
        profile = ClusterProfile(setup=("module load cuda",), container="apptainer exec 'my image.sif'")
        subprocess.run(["bash", "-n"], input=script(request, profile, CODE), text=True, check=True)


def run_script(folder: Path, profile: ClusterProfile, srun: str) -> tuple[int, str]:
    """Run the script of a job with other programs for srun and scontrol; returns its exit code and output."""
    for name, body in {"srun": srun, "scontrol": 'echo "scontrol $*"'}.items():
        path = folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    (folder / "jobs").mkdir()
    text = script(plan(folder, "x")[0], profile, TESTS)
    env = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}
    done = subprocess.run(["bash"], input=text, text=True, capture_output=True, env=env)
    return done.returncode, done.stdout


def test_a_failing_setup_line_stops_the_job(tmp_path: Path) -> None:
    assert run_script(tmp_path, ClusterProfile(setup=("false",)), "echo reached") == (1, "")


def test_a_failing_command_is_the_exit_code_of_the_job(tmp_path: Path) -> None:
    assert run_script(tmp_path, ClusterProfile(), "exit 7") == (7, "")


def test_a_job_ends_well_with_its_command(tmp_path: Path) -> None:
    assert run_script(tmp_path, ClusterProfile(), 'echo "$PWD"') == (0, f"{TESTS}\n")


def test_the_script_requeues_the_job_that_could_not_do_it_itself(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    code, text = run_script(folder, ClusterProfile(), f"touch '{folder}/jobs/8_3.requeue'; exit 1")
    assert (code, text) == (1, "scontrol requeue 8_3\n")
    assert list((folder / "jobs").iterdir()) == []


def test_the_script_requeues_the_job_whose_warning_came_before_it_could_be_ignored(tmp_path: Path) -> None:
    assert run_script(tmp_path, ClusterProfile(), "kill -USR2 $$") == (140, "scontrol requeue 8_3\n")


def test_an_outer_job_does_not_leak_into_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    leaked = {
        "SLURM_JOB_ID": "1",
        "SLURM_CPU_BIND": "verbose",
        "SLURM_ARRAY_TASK_ID": "3",
        "SRUN_CPUS_PER_TASK": "2",
        "SBATCH_PARTITION": "old",
        "PMI_RANK": "0",
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_PORT": "29500",
        "SUBMITIT_EXECUTOR": "local",
    }
    kept = {"SLURM_CONF": "/etc/slurm.conf", "FRANK": "1", "MASTER_ADDRESS_BOOK": "x"}
    for name, value in {**leaked, **kept}.items():
        monkeypatch.setenv(name, value)
    cleaned = clean_environment()
    assert not set(leaked) & set(cleaned)
    assert kept.items() <= cleaned.items()
    assert set(os.environ) - set(cleaned) == set(leaked)


def test_auto_is_slurm_where_it_is_installed_or_a_profile_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_cluster("auto", has_profile=False) == "local"
    assert choose_cluster("auto", has_profile=True) == "slurm"
    assert choose_cluster("debug", has_profile=True) == "debug"
    with pytest.raises(ClusterError, match="sbatch, squeue, scontrol, scancel not in PATH"):
        require_slurm()
    for program in PROGRAMS:  # all there, but no controller
        (tmp_path / program).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    assert choose_cluster("auto", has_profile=False) == "slurm"
    with pytest.raises(ClusterError, match="its controller is not reached"):
        require_slurm()
    (tmp_path / "squeue").unlink()
    with pytest.raises(ClusterError, match="here: squeue not in PATH"):
        require_slurm()


def test_without_slurm_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert not slurm_answers()


def test_debug_runs_everything_here_in_order(tmp_path: Path) -> None:
    assert run_debug(plan(tmp_path, "a", "b")) == []
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("rank*")) == [
        "report/rank-0-of-1",
        "score/a/rank-0-of-1",
        "score/b/rank-0-of-1",
        "train/a/rank-0-of-1",
        "train/b/rank-0-of-1",
    ]


def test_local_runs_one_process_per_gpu_and_blocks_only_what_depends_on_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,8")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # so that the jobs find this module
    reasons = run_local(plan(tmp_path, "bad", "good", gpus=2), TESTS.parent, watch_nothing)
    assert len(reasons) == 1
    assert reasons[0].startswith("train bad: ")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("rank*")) == [
        "report/rank-0-of-1",
        "score/good/rank-0-of-2",
        "score/good/rank-1-of-2",
        "train/bad/rank-0-of-2",
        "train/bad/rank-1-of-2",
        "train/good/rank-0-of-2",
        "train/good/rank-1-of-2",
    ]
    assert (tmp_path / "train" / "good" / "rank-1-of-2").read_text() == "5,7"
    assert [record.kind for record in read_records(tmp_path)] == ["train", "train", "evaluate", "report"]


def test_an_interrupted_local_launch_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # so that the jobs find this module

    def interrupt(request: JobRequest, index: int) -> None:
        if (tmp_path / "train" / "slow" / "rank-1-of-2").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(plan(tmp_path, "slow", gpus=2), TESTS.parent, interrupt)
    mark = str(tmp_path / "jobs").encode()
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark in _read(p)]
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_visible_gpus_stay_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    request = plan(STUDY, "x", gpus=2)[0]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(request) == {"gpus_per_node": 2}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(request) == {"gpus_per_node": 0}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,2")
    assert visible_gpus(request) == {"gpus_per_node": 2, "visible_gpus": [3, 1, 2]}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ClusterError, match="--gpus 2, but CUDA_VISIBLE_DEVICES=3"):
        visible_gpus(request)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f3c")
    with pytest.raises(ClusterError, match="cannot be passed on"):
        visible_gpus(request)

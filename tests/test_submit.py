"""slurm/submit.py: what sbatch is told, and what is written down of it."""

import subprocess
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from data_prep.errors import ClusterError
from slurm.job_records import read_records
from slurm.node.environment import Backend
from slurm.node.task import EvaluateTask, JobKind, ReportTask, TrainTask
from slurm.plan import JobRequest, Resources
from slurm.profile import ClusterProfile
from slurm.sbatch import sbatch_text
from slurm.submit import as_shell, check_accepted, sbatch_options, submit

STUDY = Path("/shared/runs/chest")
CODE = Path("/shared/runs/chest/code/0123456789ab")
TESTS = Path(__file__).parent


def plan(folder: Path, *names: str) -> list[JobRequest]:
    """A training array, an evaluation array after it, and a report after that."""
    train = {index: TrainTask(str(folder / name)) for index, name in enumerate(names)}
    score = {index: EvaluateTask(str(folder / name)) for index, name in enumerate(names)}
    report, gpu = {0: ReportTask(str(folder))}, Resources(1)
    return [
        JobRequest("train", JobKind.TRAIN, folder, train, resources=gpu),
        JobRequest("evaluate", JobKind.EVALUATE, folder, score, ("aftercorr:train",), resources=gpu),
        JobRequest("report", JobKind.REPORT, folder, report, ("afterany:evaluate",), is_array=False),
    ]


def test_dependencies_name_the_ids_of_jobs_submitted_before() -> None:
    after = ("afterany:evaluate", "afterany:9_3")
    request = JobRequest("report", JobKind.REPORT, STUDY, {}, after, is_array=False)
    assert sbatch_options(request, {"evaluate": "12"}) == [
        "--parsable",
        "--dependency=afterany:12,afterany:9_3",
    ]


def test_a_dry_run_writes_ids_it_does_not_know_as_shell_variables() -> None:
    request = JobRequest("evaluate-1", JobKind.EVALUATE, STUDY, {}, ("aftercorr:train",))
    text = as_shell(request, ["train", "evaluate-1"])
    assert text == "evaluate_1=$(sbatch --parsable --dependency=aftercorr:$train <<'EOF'"


def test_jobs_wait_for_those_before_and_each_is_on_record_with_its_script_and_pickles(
    tmp_path: Path, fake_slurm: FakeSlurm
) -> None:
    requests = plan(tmp_path, "linear-s0", "direct-s0")
    assert submit(requests, ClusterProfile(), CODE) == {"train": "1", "evaluate": "2", "report": "3"}
    assert {job.id: job.needs for job in fake_slurm.jobs.values()} == {
        "1_0": [],
        "1_1": [],
        "2_0": [("aftercorr", "1")],
        "2_1": [("aftercorr", "1")],
        "3": [("afterany", "2")],
    }
    assert [(record.id, record.kind, record.cluster, record.name) for record in read_records(tmp_path)] == [
        ("1", JobKind.TRAIN, Backend.SLURM, f"{tmp_path.name}-train"),
        ("2", JobKind.EVALUATE, Backend.SLURM, f"{tmp_path.name}-evaluate"),
        ("3", JobKind.REPORT, Backend.SLURM, f"{tmp_path.name}-report"),
    ]
    tasks = ("1_0", "1_1", "2_0", "2_1", "3")
    pickles = [f"{task}_submitted.pkl" for task in tasks]  # where submitit's process looks for them
    scripts = ["1.sbatch", "2.sbatch", "3.sbatch"]
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == sorted([*pickles, *scripts])
    assert (tmp_path / "jobs" / "1.sbatch").read_text() == sbatch_text(requests[0], ClusterProfile(), CODE)


def test_a_job_that_is_refused_leaves_no_pickle_and_those_before_it_stay(
    tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = plan(tmp_path, "linear-s0")
    submit(requests[:1], ClusterProfile(), CODE)
    fake_slurm.refuse("Invalid partition specified")
    with pytest.raises(ClusterError, match=r"does not accept the job .*-evaluate: .*Invalid partition"):
        submit(requests[1:2], ClusterProfile(), CODE)
    assert [record.id for record in read_records(tmp_path)] == ["1"]
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {"1_0_submitted.pkl", "1.sbatch"}


def test_a_check_submits_nothing(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    (request, *_) = plan(tmp_path, "linear-s0")
    check_accepted(request, ClusterProfile(), CODE)
    fake_slurm.refuse("error: Requested node configuration is not available")
    with pytest.raises(ClusterError, match=r"failed: Requested node configuration is not available$"):
        check_accepted(request, ClusterProfile(), CODE)
    assert fake_slurm.jobs == {}
    assert list(tmp_path.iterdir()) == []


def test_settings_of_sbatch_in_the_environment_are_said_not_to_count(
    tmp_path: Path,
    fake_slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "old")
    submit([], ClusterProfile(), CODE)
    assert caplog.messages == ["not passed on: SBATCH_PARTITION; put such settings into a cluster profile"]


def test_the_script_is_bash() -> None:
    for request in plan(STUDY, "a b"):
        profile = ClusterProfile(setup=("module load cuda",), container="apptainer exec 'my image.sif'")
        subprocess.run(["bash", "-n"], input=sbatch_text(request, profile, CODE), text=True, check=True)


def run_script(folder: Path, profile: ClusterProfile, srun: str) -> tuple[int, str]:
    """Run the script of a job with other programs for srun and scontrol; returns its exit code and output."""
    for name, body in {"srun": srun, "scontrol": 'echo "scontrol $*"'}.items():
        path = folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    (folder / "jobs").mkdir()
    text = sbatch_text(plan(folder, "x")[0], profile, TESTS)
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
    assert (code, text) == (1, "scontrol requeue incomplete 8_3\n")
    assert list((folder / "jobs").iterdir()) == []


def test_the_script_requeues_the_job_whose_warning_came_before_it_could_be_ignored(tmp_path: Path) -> None:
    assert run_script(tmp_path, ClusterProfile(), "kill -USR2 $$") == (
        140,
        "scontrol requeue incomplete 8_3\n",
    )


def test_only_the_newest_report_waits(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    requests = plan(tmp_path, "linear-s0")
    submit(requests, ClusterProfile(), CODE)
    submit(requests, ClusterProfile(), CODE)
    states = {job.id: job.state for job in fake_slurm.jobs.values() if job.name.endswith("report")}
    assert states == {"3": "CANCELLED", "6": "PENDING"}
    fake_slurm.end("5", "FAILED")
    fake_slurm.start("6")
    submit(requests[2:], ClusterProfile(), CODE)
    assert fake_slurm.jobs["6"].state == "RUNNING"  # what is being written is left alone


def test_a_warning_to_the_script_reaches_what_it_runs_and_is_waited_for(tmp_path: Path) -> None:
    ranks = (
        # not before the script has written down what it has started
        "trap 'sleep 0.3; echo told; exit 3' USR2; sleep 0.3; kill -USR2 $PPID; "
        "for i in $(seq 50); do sleep 0.1; done"
    )
    assert run_script(tmp_path, ClusterProfile(), ranks) == (3, "told\n")


def test_a_warning_during_the_setup_lines_kills_nothing(tmp_path: Path) -> None:
    assert run_script(tmp_path, ClusterProfile(setup=("kill -USR2 $$",)), "echo done") == (0, "done\n")

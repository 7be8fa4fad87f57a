"""slurm/launch.py and jobs/launch.py without SLURM: answers, mistakes, and whole studies on this machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doors import Result, like_a_process, load_door, run_door
from fake_slurm import FakeSlurm
from tiny import REPOSITORY, TINY_FLAGS

from data_prep.pack_plan import PackOptions, plan
from slurm.job_records import only_launcher
from slurm.launch import carry_out, read_launch
from vae.config import read_settings
from vae.metrics import StepLine, read_metrics
from vae.provenance import read_attempts, read_provenance
from vae.run_dir import read_done
from vae.run_state import RunState
from vae.study import Study, is_trained, prepare_study, read_launches, read_run, read_study

# A study of one epoch in this very process.
DEBUG = ("--cluster", "debug", *TINY_FLAGS, "--run.epochs", "1")


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No SLURM around these tests, whatever is installed here; one thread for each process."""
    for name in os.environ:
        if name.startswith(("SLURM", "PYTHONPATH")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def launch(folder: Path, *words: str) -> Result:
    return run_door("launch", *words, cwd=folder)


def script(name: str) -> list[str]:
    """A front door as a command of its own."""
    return [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py")]


@pytest.fixture
def folder(tmp_path: Path, shards: Path) -> Path:
    """A folder to launch in, with one packed data set below shards/."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "tiny").symlink_to(shards)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [(("--help",), "vae.config"), (("--dry-run", "--cluster", "slurm"), "slurm.plan")],
)
def test_help_and_dry_run_import_no_torch(folder: Path, words: tuple[str, ...], expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *script("launch")[1:], "--variant", "both", *TINY_FLAGS, *words],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert expected in imported
    assert not imported & {"torch", "accelerate", "ignite", "torchvision", "matplotlib"}


def test_help_teaches(tmp_path: Path) -> None:
    text = launch(tmp_path, "--help").stdout
    assert "python jobs/launch.py --variant both --gpus 4" in text
    assert "--run.lr" in text
    for fixed in ("--run.variant", "--run.seed", "--run.data", "--run.image_size_px"):
        assert fixed not in text


def test_dry_run_shows_runs_scripts_and_the_command_and_changes_nothing(folder: Path) -> None:
    words = ("--variant", "both", "--gpus", "2", "--cluster", "slurm", *TINY_FLAGS)
    done = launch(folder, *words, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^linear-s0 +missing", done.stdout, re.M)
    assert re.search(r"^direct-s0 +missing", done.stdout, re.M)
    assert re.findall(r"^(\w+)=\$\(sbatch", done.stdout, re.M) == ["train", "evaluate", "report"]
    assert "--dependency=aftercorr:$train" in done.stdout
    assert done.stdout.count("#!/bin/bash") == 3
    assert done.stdout.strip().splitlines()[-1].startswith("to do it: python jobs/launch.py --variant both")
    assert not (folder / "runs").exists()


def test_dry_run_shows_the_plan_and_then_what_is_in_the_way(folder: Path) -> None:
    words = ("--variant", "linear", "--cluster", "slurm", "--inception-weights", "nowhere.pth")
    done = launch(folder, *words, "--dry-run")
    assert done.returncode == 2
    assert re.findall(r"^(\w+)=\$\(sbatch", done.stdout, re.M) == ["train", "evaluate", "report"]
    assert "to do it" not in done.stdout
    assert done.stderr.startswith("error: no Inception v3 weights at ")
    assert not (folder / "runs").exists()


MISTAKES = {
    "no slurm": (("--cluster", "slurm"), r"no SLURM answers here: "),
    "no slurm for a profile": (("--profile", "example"), r"no SLURM answers here: "),
    "empty name": (("--study", ""), r"study name '' is not allowed"),
    "seed above 64 bits": (("--seeds", "99999999999999999999"), r"seed = 9+; allowed: below 2\*\*63"),
    "no packed images": (("--data", "nowhere"), r"nowhere"),
    "no GPU": (("--gpus", "0"), r"--gpus 0 --nodes 1; allowed: at least 1 each"),
    "unknown profile": (("--profile", "alpin"), r'Unknown profile "alpin"\. Known: '),
    "none at once": (("--max-parallel", "0"), r"--max-parallel 0; allowed: at least 1"),
    "uneven nodes": (("--gpus", "3", "--nodes", "2"), r"--gpus 3 cannot be spread evenly over --nodes 2"),
    "more gpus than images in a batch": (("--gpus", "16"), r"batch_size 8 cannot be shared by 16"),
    "batch above data": (("--run.batch_size", "100"), r"batch_size 100 is more than the 70 training images"),
    "debug on two": (("--gpus", "2", "--cluster", "debug"), r"--cluster debug is one process"),
    "several machines": (("--gpus", "2", "--nodes", "2", "--cluster", "local"), r"this is one machine"),
    "name with a slash": (("--study", "../x"), r"study name '\.\./x' is not allowed"),
    "name that begins with a dash": (("--study=-x",), r"study name '-x' is not allowed"),
    "missing weights": (
        ("--extractor", "inception", "--inception-weights", "w.pth"),
        r"no Inception v3 weights",
    ),
    "bad setting": (("--run.lr", "-1"), r"lr = -1\.0; allowed: above 0"),
    "typing error": (("--gpu", "2"), r"--gpu"),
    "another size": (("--size", "64"), r"the images in .* are 32 px wide, not the 64 px asked for\n"),
    "no folder": (("--runs-dir", "shards/tiny/manifest.json/runs"), r".*manifest\.json is not a folder"),
    "path that slurm misreads": (("--runs-dir", "a%j"), r"misread"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line_and_changes_nothing(folder: Path, name: str) -> None:
    words, expected = MISTAKES[name]
    done = launch(folder, "--variant", "linear", "--gpus", "1", *TINY_FLAGS, *words)
    assert done.returncode == 2, done.stderr
    assert re.match(f"error: .*{expected}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "runs").exists()


def test_images_that_are_packed_by_half_are_not_taken_for_a_source(tmp_path: Path) -> None:
    plan("phantom:16", tmp_path / "half", PackOptions(size_px=32))
    done = launch(tmp_path, "--variant", "linear", "--data", "half", *TINY_FLAGS)
    assert done.returncode == 2
    assert done.stderr == (
        "error: half holds images that are not packed to the end: manifest.json is missing\n"
        "hint: python jobs/pack.py phantom:16 half goes on\n"
    )


def test_a_source_that_is_packed_in_another_size_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    source, out = "phantom:16", tmp_path / "shards" / "phantom-16"
    plan(source, out, PackOptions(size_px=32))
    before = (out / "plan.json").read_text()
    words = ("--variant", "linear", "--data", source, *TINY_FLAGS, "--dry-run")
    for given, size in ((("--size", "64"), 64), ((), 256)):
        done = launch(tmp_path, *words, *given)
        assert done.returncode == 2
        error = f"error: the images in {out} are 32 px wide, not the {size} px asked for\n"
        assert done.stderr.startswith(f"{error}hint: use --size 32, or")
    assert "linear-s0" in launch(tmp_path, *words, "--size", "32").stdout
    assert (out / "plan.json").read_text() == before


def test_without_data_it_says_what_to_give(tmp_path: Path) -> None:
    done = launch(tmp_path, "--variant", "linear", "--gpus", "1", *TINY_FLAGS)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no packed images under shards/\nhint: give --data")


def test_several_data_sets_must_be_chosen_from(folder: Path, shards: Path) -> None:
    (folder / "shards" / "other").symlink_to(shards)
    done = launch(folder, "--variant", "linear", "--gpus", "1", *TINY_FLAGS)
    assert done.stderr.startswith(
        "error: several packed data sets under shards/: shards/other, shards/tiny\n"
    )


# --- on a cluster in memory ----------------------------------------------------------------------

ON_SLURM = ("--cluster", "slurm", "--study", "chest", *TINY_FLAGS)


def file_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_what_is_queued_is_left_alone_and_no_file_is_touched(folder: Path, fake_slurm: FakeSlurm) -> None:
    words = ("--variant", "both", *ON_SLURM)
    done = launch(folder, *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^direct-s0 +queued", done.stdout, re.M)
    assert done.stdout.endswith(f"to see how far it is: python jobs/status.py {folder}/runs/chest\n")
    assert [job.id for job in fake_slurm.jobs.values()] == ["1_0", "1_1", "2_0", "2_1", "3"]

    before, submitted = file_times(folder / "runs"), fake_slurm.asked("sbatch")
    again = launch(folder, *words)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert file_times(folder / "runs") == before
    assert fake_slurm.asked("sbatch") == submitted

    more = launch(folder, "--variant", "all", "--max-parallel", "1", *ON_SLURM)
    assert more.returncode == 0, more.stderr
    assert {job for job in fake_slurm.jobs if job.startswith("4")} == {"4_2"}  # spatial-s0 alone


def test_what_slurm_refuses_leaves_no_folder(folder: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.refuse("Invalid account or account/partition combination specified")
    done = launch(folder, "--variant", "linear", *ON_SLURM)
    assert done.returncode == 2
    error = "error: SLURM does not accept the job chest-train: Batch job submission failed"
    assert re.search(f"^{error}: Invalid account", done.stderr, re.M)
    assert not (folder / "runs").exists()


def test_only_one_launcher_is_at_work(folder: Path, fake_slurm: FakeSlurm) -> None:
    (folder / "runs" / "chest").mkdir(parents=True)
    with only_launcher(folder / "runs" / "chest"):
        done = launch(folder, "--variant", "linear", *ON_SLURM)
    assert done.returncode == 2
    error = r"^error: another launch of .*/runs/chest is at work\nhint: wait for it"
    assert re.search(error, done.stderr, re.M)
    assert fake_slurm.jobs == {}


def test_images_are_packed_first_and_their_plan_is_there(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    words = ("--variant", "linear", "--data", "phantom:48", "--size", "32", *ON_SLURM)
    done = launch(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert [job.name for job in fake_slurm.jobs.values() if job.index in ("", "0")] == [
        "phantom-48-pack",
        "phantom-48-finalize",
        "chest-train",
        "chest-evaluate",
        "chest-report",
    ]
    assert (tmp_path / "shards" / "phantom-48" / "plan.json").exists()
    before = file_times(tmp_path)
    assert launch(tmp_path, *words).returncode == 0
    assert file_times(tmp_path) == before


def test_who_waits_is_told_of_every_change_and_of_the_end(
    folder: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(folder, "--variant", "linear", *ON_SLURM)
    fake_slurm.take_over_time(monkeypatch)
    fake_slurm.at(20, lambda: fake_slurm.start("1"))
    fake_slurm.at(100, lambda: fake_slurm.end("1", "FAILED"))
    fake_slurm.at(200, lambda: fake_slurm.start("3"))
    fake_slurm.at(300, lambda: fake_slurm.end("3"))
    done = launch(folder, "--variant", "linear", "--wait", *ON_SLURM)
    assert done.returncode == 1
    changes = re.findall(r"^linear-s0: (\w+)", done.stderr, re.M)
    assert changes == ["queued", "training", "failed"]
    assert re.search(r"^linear-s0 +failed", done.stdout, re.M)
    assert "to see how far it is" not in done.stdout


def test_who_stops_waiting_leaves_the_jobs_alone(
    folder: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c() -> None:
        raise KeyboardInterrupt

    launch(folder, "--variant", "linear", *ON_SLURM)
    fake_slurm.take_over_time(monkeypatch)
    fake_slurm.at(20, ctrl_c)
    done = launch(folder, "--variant", "linear", "--wait", *ON_SLURM)
    assert done.returncode == 130
    assert f"the jobs go on; python jobs/cancel.py {folder}/runs/chest ends them\n" in done.stderr
    assert {job.state for job in fake_slurm.jobs.values()} == {"PENDING"}


def test_runs_that_another_launch_has_just_added_keep_their_numbers(
    folder: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with like_a_process("launch", (), folder):
        flags = load_door("launch").build_parser().parse_args(["--variant", "linear", *ON_SLURM])
    mine = read_launch(flags)
    prepare_study(mine.study_dir, Study("chest", ("direct-s0",), "smoke"))  # by another, in the meantime
    assert not carry_out(mine, ["python", "jobs/launch.py"], must_wait=False)
    assert read_study(mine.study_dir).runs == ("direct-s0", "linear-s0")
    assert list(fake_slurm.jobs) == ["1_1", "2_1", "3"]
    assert [(run.name, run.state) for run in mine.states()] == [("linear-s0", RunState.QUEUED)]


def test_three_hundred_queued_runs_are_left_alone_quickly(folder: Path, fake_slurm: FakeSlurm) -> None:
    words = ("--variant", "linear", "--seeds", *map(str, range(300)), *ON_SLURM)
    assert launch(folder, *words).returncode == 0
    before, begun_s = file_times(folder / "runs"), time.process_time()
    assert launch(folder, *words).returncode == 0
    assert time.process_time() - begun_s < 1.5
    assert file_times(folder / "runs") == before


# --- on this machine -----------------------------------------------------------------------------


BOTH = ("--variant", "both", "--gpus", "1", *DEBUG)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> tuple[Path, Result]:
    """A folder in which a study was launched and is done, and what was said. Take a copy to write into."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "shards").mkdir()
    (folder / "shards" / "tiny").symlink_to(shards)
    return folder, launch(folder, *BOTH)


def test_a_study_runs_to_its_report_in_this_process_and_then_nothing_is_left_to_do(
    launched: tuple[Path, Result],
) -> None:
    folder, done = launched
    assert done.returncode == 0, done.stderr
    assert re.search(r"^linear-s0 +done", done.stdout, re.M)
    assert re.search(r"^direct-s0 +done", done.stdout, re.M)
    assert "smoke, not comparable" in done.stdout
    report = Path(done.stdout.strip().splitlines()[-1].removeprefix("report: "))
    assert report == folder / "runs" / report.parent.name / "report.html"
    assert report.exists()

    (started,) = read_launches(report.parent)
    assert started.command == ["python", "jobs/launch.py", *BOTH]
    assert started.runs == ["linear-s0", "direct-s0"]
    assert list(read_provenance(report.parent / "linear-s0").command) == started.command

    before = file_times(report.parent)
    again = launch(folder, *BOTH, "--dry-run")
    assert again.stdout.endswith("\nnothing is missing\n")
    again = launch(folder, *BOTH)
    assert again.returncode == 0
    assert file_times(report.parent) == before

    other = launch(folder, *BOTH, "--run.lr", "0.01")
    assert other.returncode == 2
    assert "holds a run with other settings: lr: 0.001 -> 0.01" in other.stderr


def test_the_same_command_makes_lost_weights_again_and_nothing_else(
    launched: tuple[Path, Result], tmp_path: Path
) -> None:
    folder = shutil.copytree(launched[0], tmp_path / "copy", symlinks=True)
    (study_dir,) = (folder / "runs").iterdir()
    lost, kept = study_dir / "linear-s0", study_dir / "direct-s0"
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()}
    done = read_done(lost)
    shutil.rmtree(lost / "checkpoints")  # as a scratch file system purges what nobody reads
    shown = run_door("status", study_dir).stdout
    assert re.search(r"^linear-s0 +damaged .*model\.safetensors is lost; launch again", shown, re.M)
    again = launch(folder, *BOTH)
    assert again.returncode == 0, again.stderr
    assert read_done(lost) == done
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*") if path.is_file()} == before
    assert run_door("status", study_dir, "--verify").returncode == 0
    assert re.findall(r"^(\S+-s0) +(\w+)", again.stdout, re.M)[:2] == [
        ("linear-s0", "done"),
        ("direct-s0", "done"),
    ]


def test_ctrl_c_saves_and_the_same_command_goes_on_and_later_launches_add_runs(folder: Path) -> None:
    words = ("--gpus", "2", "--cluster", "local", "--study", "cut", *TINY_FLAGS)
    words = (*words, "--run.log_every_steps", "1", "--run.epochs", "400", "--run.max_steps", "100")
    command = [*script("launch"), "--variant", "linear", *words]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    study_dir = folder / "runs" / "cut"
    run_dir = study_dir / "linear-s0"
    give_up = time.monotonic() + 60
    while len(read_metrics(run_dir)) < 10:
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "run the same command again to go on" in text
    assert not is_trained(run_dir)
    stopped_at = [line.step for line in read_metrics(run_dir) if isinstance(line, StepLine)][-1]
    place = f"saved at step {stopped_at}"
    assert f"interrupted, {place}" in run_door("status", "cut", cwd=folder).stdout
    cause = f"was interrupted at step {stopped_at} of 100, {place}; run"
    assert cause in run_door("why", "cut", cwd=folder).stdout

    done = launch(folder, "--variant", "linear", *words)
    assert done.returncode == 0, done.stderr
    if shutil.which("nvidia-smi") is None:
        assert done.stderr.count("no NVIDIA GPU here; --gpus 2 means as many processes on the CPU") == 1
    attempts = read_attempts(run_dir)
    assert [attempt.from_step for attempt in attempts] == [0, stopped_at]
    assert {(attempt.cluster, attempt.world_size) for attempt in attempts} == {("local", 2)}
    assert read_run(run_dir).image_size_px == 32
    logs = sorted(re.sub(r"\d+-r0", "N", path.name) for path in (run_dir / "logs").iterdir())
    assert logs == [
        "evaluate-local-N-rank0.log",
        "evaluate-local-N-rank1.log",
        *["train-local-N-rank0.log"] * 2,
        *["train-local-N-rank1.log"] * 2,
    ]
    more = launch(folder, "--variant", "linear", "--seeds", "0", "1", *words, "--dry-run")
    assert re.search(r"^train: linear-s1$", more.stdout, re.M)
    assert re.search(r"^linear-s0 +done", more.stdout, re.M)
    assert read_settings(Study, study_dir / "study.yaml").runs == ("linear-s0",)

"""jobs/launch.py as a user meets it, without SLURM: answers, mistakes, and whole studies on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import REPOSITORY, TINY_FLAGS, child_environment

from data_prep.pack_plan import PackOptions, plan
from vae.config import read_settings
from vae.metrics import read_metrics
from vae.study import Study, is_trained, read_json, read_launches, read_run

SHORT = (*TINY_FLAGS, "--run.epochs", "1")


def environment() -> dict[str, str]:
    """No SLURM to be found, whatever is installed here."""
    return {k: v for k, v in child_environment().items() if not k.startswith(("SLURM", "PYTHONPATH"))}


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / "launch.py"), *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture
def folder(tmp_path: Path, shards: Path) -> Path:
    """A folder to launch in, with one packed data set below shards/."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "tiny").symlink_to(shards)
    return tmp_path


@pytest.mark.parametrize("words", [("--help",), ("--dry-run", "--cluster", "slurm")])
def test_help_and_dry_run_import_no_torch(folder: Path, words: tuple[str, ...]) -> None:
    script = str(REPOSITORY / "jobs" / "launch.py")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", script, "--variant", "both", "--gpus", "2", *TINY_FLAGS, *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "slurm.plan" in imported
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
        said = (
            f"error: the images in {out} are 32 px wide, not the {size} px asked for\nhint: use --size 32, or"
        )
        assert done.stderr.startswith(said)
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


def test_a_study_runs_to_its_report_in_this_process_and_then_nothing_is_left_to_do(folder: Path) -> None:
    words = ("--variant", "both", "--gpus", "1", "--cluster", "debug", *SHORT)
    done = launch(folder, *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^linear-s0 +done", done.stdout, re.M)
    assert re.search(r"^direct-s0 +done", done.stdout, re.M)
    assert "smoke, not comparable" in done.stdout
    report = Path(done.stdout.strip().splitlines()[-1].removeprefix("report: "))
    assert report == folder / "runs" / report.parent.name / "report.html"
    assert report.exists()

    (started,) = read_launches(report.parent)
    assert started["command"] == ["python", "jobs/launch.py", *words]
    assert started["runs"] == ["linear-s0", "direct-s0"]
    provenance = read_json(report.parent / "linear-s0" / "provenance.json") or {}
    assert provenance["command"] == started["command"]

    stamps = {path: path.stat().st_mtime_ns for path in report.parent.rglob("*") if path.is_file()}
    again = launch(folder, *words, "--dry-run")
    assert again.stdout.endswith("\nnothing is missing\n")
    again = launch(folder, *words)
    assert again.returncode == 0
    changed = [path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert changed in ([], ["study.yaml"])

    other = launch(folder, *words, "--run.lr", "0.01")
    assert other.returncode == 2
    assert "holds a run with other settings: lr: 0.001 -> 0.01" in other.stderr


def test_local_processes_train_and_later_launches_add_runs(folder: Path) -> None:
    words = ("--gpus", "2", "--cluster", "local", "--study", "grow", *SHORT)
    done = launch(folder, "--variant", "linear", *words)
    assert done.returncode == 0, done.stderr
    if shutil.which("nvidia-smi") is None:
        assert done.stderr.count("no NVIDIA GPU here; --gpus 2 means as many processes on the CPU") == 1
    study_dir = folder / "runs" / "grow"
    assert read_run(study_dir / "linear-s0").image_size_px == 32
    attempt = (read_json(study_dir / "linear-s0" / "provenance.json") or {})["attempts"][0]
    assert (attempt["cluster"], attempt["world_size"]) == ("local", 2)
    logs = sorted(path.name for path in (study_dir / "linear-s0" / "logs").iterdir())
    assert [re.sub(r"\d+-r0", "N", name) for name in logs] == [
        "evaluate-local-N-rank0.log",
        "evaluate-local-N-rank1.log",
        "train-local-N-rank0.log",
        "train-local-N-rank1.log",
    ]
    more = launch(folder, "--variant", "linear", "--seeds", "0", "1", *words, "--dry-run")
    assert re.search(r"^train: linear-s1$", more.stdout, re.M)
    assert re.search(r"^linear-s0 +done", more.stdout, re.M)
    assert read_settings(Study, study_dir / "study.yaml").runs == ("linear-s0",)


def test_ctrl_c_saves_and_the_same_command_goes_on_at_that_step(folder: Path) -> None:
    words = ("--variant", "direct", "--gpus", "1", "--cluster", "local", "--study", "cut", *TINY_FLAGS)
    words = (*words, "--run.log_every_steps", "1", "--run.epochs", "400")
    command = [sys.executable, str(REPOSITORY / "jobs" / "launch.py"), *words, "--run.max_steps", "200"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def door(name: str, *more: str) -> str:
        words = [sys.executable, str(REPOSITORY / "jobs" / name), *more]
        return subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True).stdout

    run_dir = folder / "runs" / "cut" / "direct-s0"
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
    stopped_at = read_metrics(run_dir)[-1]["step"]
    told = f"interrupted, saved at step {stopped_at}"
    assert told in door("status.py", "cut")
    assert f"was interrupted at step {stopped_at} of 200, saved at step {stopped_at}; run" in door(
        "why.py", "cut"
    )
    assert subprocess.run(command, cwd=folder, env=environment(), capture_output=True).returncode == 0
    attempts = (read_json(run_dir / "provenance.json") or {})["attempts"]
    assert [attempt["from_step"] for attempt in attempts] == [0, stopped_at]

"""The packing command: one line per mistake, exit code 2, and nothing lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pictures import kaggle, write_bad
from tiny import REPOSITORY, child_environment


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/pack.py", *map(str, words)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=child_environment(), capture_output=True, text=True, check=False
    )


def test_phantoms_are_packed_audited_and_verified(tmp_path: Path) -> None:
    packed = run("phantom:40", tmp_path / "out", "--size", "32", "--workers", "1")
    assert packed.returncode == 0, packed.stderr
    assert "packed:" in packed.stdout
    assert "40 of 40 images" in packed.stderr
    assert "patients in more than one split: 0" in run(tmp_path / "out", "--audit").stdout
    assert "40 images in" in run(tmp_path / "out", "--verify").stdout


def test_parts_are_joined(tmp_path: Path) -> None:
    source = kaggle(tmp_path / "source", train=20, test=10)
    words = [source, tmp_path / "out", "--size", "32", "--shard-images", "16"]
    for task in ("0", "1"):
        assert run(*words, "--task", task, "--tasks", "2").returncode == 0
    done = run(*words, "--finalize")
    assert done.returncode == 0, done.stderr
    assert "20 test" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere", "{out}"], "no images at 'nowhere'"),
        (["phantom:40"], "OUT is missing"),
        (["phantom:40", "{out}", "--size", "large"], "--size"),
        (["phantom:40", "{out}", "--size", "3"], "--size 3 is not allowed"),
        (["phantom:40", "{out}", "--task", "1"], "--task and --tasks belong together"),
        (["phantom:40", "{out}", "--task", "2", "--tasks", "2"], "--task 2 --tasks 2"),
        (["phantom:40", "{out}", "--aspect", "squeeze"], "--aspect"),
        (["{out}", "--audit"], "no packed images"),
        (["{out}", "--verify"], "no packed images"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str], told: str) -> None:
    done = run(*[word.format(out=tmp_path / "out") for word in words])
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


def test_too_many_bad_files_are_exit_code_2(tmp_path: Path) -> None:
    source = kaggle(tmp_path / "source", train=10, test=4)
    write_bad(source / "train" / "NORMAL")
    done = run(source, tmp_path / "out", "--size", "32", "--workers", "1")
    assert done.returncode == 2
    assert "more than --max-bad 0.01" in done.stderr
    assert not list((tmp_path / "out").glob("*.h5"))


def test_workers_stay_small(tmp_path: Path) -> None:
    """The workers load neither torch nor matplotlib, so that a node can run one per core."""
    code = "import sys, data_prep.packer; print({'torch', 'matplotlib', 'pydicom'} & set(sys.modules) or [])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

"""The packing command: one line per mistake, exit code 2, and nothing lost."""

from __future__ import annotations

import importlib
import logging
import re
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


def test_resumed_pack_counts_only_its_own_speed(tmp_path: Path) -> None:
    words = ["phantom:40", tmp_path / "out", "--size", "32", "--workers", "1", "--shard-images", "8"]
    assert run(*words, "--task", "0", "--tasks", "2").returncode == 0
    again = run(*words)
    assert again.returncode == 0, again.stderr
    old = int(re.findall(r"^(\d+) of 40 images are packed already$", again.stderr, re.M)[0])
    assert 16 <= old <= 32
    assert len(re.findall(r"^40 of 40 images, \d+ images/s, 0 s left$", again.stderr, re.M)) == 1
    done = run(*words)
    assert "40 of 40 images are packed already" in done.stderr
    assert "images/s" not in done.stderr


def test_speed_leaves_out_what_was_packed_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "jobs"))
    pack = importlib.import_module("pack")
    clock = iter((0.0, 20.0, 40.0))
    monkeypatch.setattr(pack.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "pack"):
        advance = pack.plain_progress(1000)
        for count in (800, 100, 100):
            advance(count)
    assert caplog.messages == [
        "800 of 1000 images are packed already",
        "900 of 1000 images, 5 images/s, 20 s left",
        "1000 of 1000 images, 5 images/s, 0 s left",
    ]


def test_mistyped_folder_is_answered_with_the_packed_ones(tmp_path: Path) -> None:
    folder = tmp_path / "shards"  # other tests have packed images beside tmp_path
    assert run("phantom:16", folder / "right", "--size", "32", "--workers", "1").returncode == 0
    for typed in (folder / "rihgt", folder):
        done = run(typed, "--verify")
        assert done.returncode == 2
        assert done.stderr.splitlines()[1] == f"hint: packed images are in {folder / 'right'}"

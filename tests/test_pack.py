"""The packing command: one line per mistake, exit code 2, and nothing lost."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from doors import run_door
from pictures import kaggle, write_bad
from tiny import REPOSITORY, child_environment


def test_phantoms_are_packed_audited_and_verified(tmp_path: Path) -> None:
    packed = run_door("pack", "phantom:40", tmp_path / "out", "--size", "32", "--workers", "1")
    assert packed.returncode == 0, packed.stderr
    assert "packed:" in packed.stdout
    assert "40 of 40 images" in packed.stderr
    assert "patients in more than one split: 0" in run_door("pack", tmp_path / "out", "--audit").stdout
    assert "40 images in" in run_door("pack", tmp_path / "out", "--verify").stdout


def test_parts_are_joined(tmp_path: Path) -> None:
    source = kaggle(tmp_path / "source", train=20, test=10)
    words = [source, tmp_path / "out", "--size", "32", "--shard-images", "16", "--workers", "1"]
    for task in ("0", "1"):
        assert run_door("pack", *words, "--task", task, "--tasks", "2").returncode == 0
    done = run_door("pack", *words, "--finalize")
    assert done.returncode == 0, done.stderr
    assert "20 test" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "{out}"], "no images at 'nowhere'"),
        (["phantom:40"], "OUT is missing"),
        (["phantom:40", "{out}", "--size", "large"], "--size"),
        (["phantom:40", "{out}", "--size", "3"], "--size 3 is not allowed"),
        (["phantom:40", "{out}", "--task", "1"], "--task and --tasks belong together"),
        (["phantom:40", "{out}", "--task", "2", "--tasks", "2"], "--task 2 --tasks 2"),
        (["phantom:40", "{out}", "--aspect", "squeeze"], "--aspect"),
        (["phantom:40", "{out}", "--seed", str(2**70)], "--seed 1180591620717411303424 is not allowed"),
        (["phantom:40", "{out}", "--workers", "99999"], "--workers 99999 is not allowed"),
        (["phantom:99999999999", "{out}"], "phantom:99999999999 is not possible"),
        (["", "{out}"], "SOURCE is empty"),
        (["phantom:40", "{out}", "--label-from", "file"], "--label-from"),
        (["{out}", "--audit"], "no packed images"),
        (["{out}", "--verify"], "no packed images"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str], message: str) -> None:
    done = run_door("pack", *[word.format(out=tmp_path / "out") for word in words])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


def test_too_many_bad_files_are_exit_code_2(tmp_path: Path) -> None:
    source = kaggle(tmp_path / "source", train=10, test=4)
    write_bad(source / "train" / "NORMAL")
    done = run_door("pack", source, tmp_path / "out", "--size", "32", "--workers", "1")
    assert done.returncode == 2
    assert "more than --max-bad 0.01" in done.stderr
    assert not list((tmp_path / "out").glob("*.h5"))


@pytest.mark.parametrize(
    ("name", "flag"), [("plan.json", ""), ("audit.json", "--audit"), ("manifest.json", "--verify")]
)
@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"format": "1"}', b"null"])
def test_a_damaged_file_is_one_line_that_names_it(
    tmp_path: Path, packed: Path, name: str, flag: str, content: bytes
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for path in packed.iterdir():
        (out / path.name).symlink_to(path)
    (out / name).unlink()
    (out / name).write_bytes(content)
    words = [out, flag] if flag else ["phantom:16", out, "--size", "32", "--workers", "1"]
    done = run_door("pack", *words)
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: {out / name} is damaged: ")
    assert "pack" in hint


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 phantoms, to be damaged in copies."""
    out = tmp_path_factory.mktemp("packed")
    assert run_door("pack", "phantom:16", out, "--size", "32", "--workers", "1").returncode == 0
    return out


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "jobs/pack.py", "--help"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=child_environment(), capture_output=True, text=True, check=True
    )
    assert "--max-bad SHARE" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "data_prep.packer" in loaded
    assert not loaded & {"torch", "matplotlib", "pydicom", "submitit"}


def test_resumed_pack_counts_only_its_own_speed(tmp_path: Path) -> None:
    words = ["phantom:40", tmp_path / "out", "--size", "32", "--workers", "1", "--shard-images", "8"]
    assert run_door("pack", *words, "--task", "0", "--tasks", "2").returncode == 0
    again = run_door("pack", *words)
    assert again.returncode == 0, again.stderr
    old = int(re.findall(r"^(\d+) of 40 images are packed already$", again.stderr, re.M)[0])
    assert 16 <= old <= 32
    assert len(re.findall(r"^40 of 40 images, \d+ images/s, 0 s left$", again.stderr, re.M)) == 1
    done = run_door("pack", *words)
    assert "40 of 40 images are packed already" in done.stderr
    assert "images/s" not in done.stderr


def test_mistyped_folder_is_answered_with_the_packed_ones(tmp_path: Path) -> None:
    folder = tmp_path / "shards"  # other tests have packed images beside tmp_path
    packed = run_door("pack", "phantom:16", folder / "right", "--size", "32", "--workers", "1")
    assert packed.returncode == 0
    for typed in (folder / "rihgt", folder):
        done = run_door("pack", typed, "--verify")
        assert done.returncode == 2
        assert done.stderr.splitlines()[1] == f"hint: packed images are in {folder / 'right'}"

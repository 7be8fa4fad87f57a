"""jobs/_front.py: help and answers that every front door shares."""

from __future__ import annotations

import errno
import re
import subprocess
import sys

import pytest
from tiny import REPOSITORY, child_environment


def call(door: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{door}.py"), *words]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=60)


def entries(door: str) -> dict[str, str]:
    """What --help says of each flag."""
    text = call(door, "--help").stdout.partition("examples:")[0]
    return {entry.split()[0]: entry for entry in re.split(r"\n  (?=--)", text)}


@pytest.mark.parametrize(
    ("door", "shown"),
    [
        ("launch", ("--gpus 1", "--seeds 0", "--cluster auto", "--size 256", "--runs-dir runs")),
        ("launch", ("--run.lr 0.001", "--run.widths [32,64,128,256]", "--run.compile false")),
        ("train", ("--run.variant linear", "--run.trackers [tensorboard]")),
        ("pack", ("--size 256", "--aspect stretch", "--max-bad 0.01")),
        ("logs", ("--attempt the newest", "--rank 0", "--runs-dir runs")),
    ],
)
def test_help_shows_each_default_once(door: str, shown: tuple[str, ...]) -> None:
    known = entries(door)
    for flag, default in (line.split(" ", 1) for line in shown):
        assert re.findall(r"\(default: (.*?)\)", known[flag]) == [default]


def test_a_switch_and_what_has_no_default_show_none() -> None:
    known = entries("launch")
    for flag in ("--dry-run", "--profile", "--variant"):
        assert "default" not in known[flag]


@pytest.mark.parametrize(
    ("number", "is_told"), [(errno.EACCES, True), (errno.ENOSPC, True), (errno.EIO, False)]
)
def test_a_disk_that_refuses_is_one_line(number: int, is_told: bool) -> None:
    code = (
        "import sys; sys.path.insert(0, 'jobs'); import _front\n"
        f"def main(): raise OSError({number}, 'it refuses', '/data/x')\n"
        "_front.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=child_environment(), capture_output=True, text=True
    )
    assert (done.returncode, "Traceback" in done.stderr) == ((2, False) if is_told else (1, True))
    assert not is_told or done.stderr.startswith("error: it refuses: /data/x\nhint: ")


@pytest.mark.parametrize(
    ("door", "words", "told"),
    [
        ("launch", (), "error: the following arguments are required: --variant\nhint: python jobs/launch.py"),
        ("why", (), "error: the following arguments are required: STUDY|STUDY/RUN\nhint: python jobs/why.py"),
        (
            "launch",
            ("--variant", "both", "--run.image_size_px", "64"),
            "error: unrecognized arguments: --run.image_size_px 64\nhint: the packed images set the size",
        ),
        (
            "launch",
            ("--variant", "both", "--run.widths", "4"),
            "error: --run.widths: expected a list, as in [a, b], not 4\nhint: python jobs/launch.py --help\n",
        ),
        (
            "launch",
            ("--variant", "both", "--run.precision", "fp8"),
            "error: --run.precision: expected one of 'auto', 'bf16', 'fp16', 'fp32', 'fp64', not fp8\n",
        ),
        (
            "launch",
            ("--variant", "both", "--run.seed=3"),
            "error: unrecognized arguments: --run.seed=3\nhint: use --seeds\n",
        ),
        (
            "launch",
            ("--variant", "both", "--run.seeds=3"),
            "error: unrecognized arguments: --run.seeds=3\nhint: python",
        ),
    ],
)
def test_a_wrong_command_is_answered_in_words_one_can_type(
    door: str, words: tuple[str, ...], told: str
) -> None:
    done = call(door, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(told), done.stderr

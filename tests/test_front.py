"""jobs/_front.py: help and answers that every front door shares."""

import errno
import re
import subprocess
import sys

import pytest
from doors import like_a_process, run_door
from tiny import REPOSITORY


def entries(door: str) -> dict[str, str]:
    """What --help says of each flag."""
    text = run_door(door, "--help").stdout.partition("examples:")[0]
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
    texts = entries(door)
    for flag, default in (line.split(" ", 1) for line in shown):
        assert re.findall(r"\(default: (.*?)\)", texts[flag]) == [default]


def test_a_switch_and_what_has_no_default_show_none() -> None:
    texts = entries("launch")
    for flag in ("--dry-run", "--profile", "--variant"):
        assert "default" not in texts[flag]


@pytest.mark.parametrize(
    ("door", "words", "hint"),
    [
        ("launch", ["--variant", "both", "--run.epocs", "3"], "did you mean --run.epochs?"),
        ("train", ["x", "--run.batchsize", "3"], "did you mean --run.batch_size?"),
        ("pack", ["x", "y", "--sise", "64"], "did you mean --size?"),
        ("pack", ["x", "y", "--zzz", "64"], "python jobs/pack.py --help"),
    ],
)
def test_a_flag_that_does_not_exist_names_the_one_that_was_meant(
    door: str, words: list[str], hint: str
) -> None:
    done = run_door(door, *words)
    assert done.returncode == 2
    assert f"hint: {hint}" in done.stderr


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.ENAMETOOLONG, errno.ENOTDIR])
def test_a_disk_or_path_that_refuses_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_front(OSError(number, "it refuses", "/data/x"))
    assert capsys.readouterr().err.startswith("error: it refuses: /data/x\nhint: ")


def test_an_error_that_no_disk_is_to_blame_for_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="it refuses"):
        run_front(OSError(errno.EIO, "it refuses", "/data/x"))


def run_front(error: OSError) -> None:
    """What every front door does with an error."""

    def main() -> int:
        raise error

    with like_a_process("report", (), REPOSITORY):
        import _front

        _front.run(main)


@pytest.mark.parametrize(
    ("door", "words", "expected"),
    [
        ("launch", (), "error: the following arguments are required: --variant\nhint: python jobs/launch.py"),
        (
            "cancel",
            (),
            "error: the following arguments are required: STUDY|STUDY/RUN\nhint: python jobs/cancel",
        ),
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
            "error: unrecognized arguments: --run.seeds=3\nhint: did you mean --seeds?",
        ),
        ("train", ("run", f"--run={'9' * 5000}"), "error: Exceeds the limit"),
        (
            "train",
            ("run", f"--run.widths={'[' * 90_000}"),
            "error: no setting is nested so deep\nhint: python",
        ),
    ],
)
def test_a_wrong_command_is_answered_in_words_one_can_type(
    door: str, words: tuple[str, ...], expected: str
) -> None:
    done = run_door(door, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(expected), done.stderr


def test_without_its_packages_a_command_says_how_to_install_them() -> None:
    """-S: as a Python into which nothing was installed."""
    command = [sys.executable, "-S", "-E", str(REPOSITORY / "jobs" / "status.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: jsonargparse is not installed for {sys.executable}\nhint: ")

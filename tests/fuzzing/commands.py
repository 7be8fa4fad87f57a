"""Command lines of every front door, typed in a folder with images, packed images and a study."""

import json
import os
import re
from pathlib import Path

from doors import DOORS, run_door
from fuzzing.inputs import Bench, Case, knock
from fuzzing.packed import pack
from fuzzing.study import RUN, STOPPED, STUDY, prepare
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

NAMES = sorted(path.stem for path in DOORS.glob("[a-z]*.py"))
# Appended, so that nothing is trained, scored, fetched or spread over processes; the last flag counts.
TAILS = {
    "launch": ("--dry-run",),
    "train": ("--run.data", "nowhere"),
    "drill": ("--data", "nowhere"),
    "pack": ("--workers", "1"),
    "weights": ("--inception-weights", "none.pth"),
}
TARGETS = (STUDY, STOPPED, "old", "runs/none", "runs", "shards/tiny")
SOURCES = ("source", "packed", "source.csv", "phantom:16", "phantom:15", "phantom:99999999999", "phantom:\u0661\u0666", "phantom:", "/proc")
FIRST: dict[str, tuple[str, ...]] = {"pack": SOURCES, "train": ("runs/new/a", STOPPED, "source/A/0.png"), "weights": ("check", "fetched")}
ODD = (
    ("", " ", ".", "..", "/dev/null", "pipe", "~x", "~", "\udcff", "\u202e", "x" * 300, "x" * 5000, "\x1b[31m", "[/x]", "a\nb", "--", "-", "-1", "@x")
    + ("0", "1", "2", "3", "16", "1.5", "1e999", "nan", "inf", "-inf", "true", "null", "[1,2", "[]", "[[]]", "{a: 1}", "{", "&a [*a]", "1_000", "\u0663")
    + (str(2**31), str(2**63), str(2**70), "9" * 5000, "=1+1", "smoke", "inception", "both", "all", "local", "slurm", "debug", "auto", "hold", "release", "out", "new/out")
    + ("site.yaml", "example", "pad", "!!python/name:os.system", "run.yaml")
)

# No command line can hold a NUL, and bytes that are no UTF-8 arrive as the few surrogates above.
TYPED = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


def flags_of(door: str) -> list[str]:
    """The flags that --help shows."""
    return re.findall(r"^\s+(--[\w.-]+)", run_door(door, "--help").stdout, re.MULTILINE)


def lines_of(door: str) -> SearchStrategy[Case]:
    """Command lines of one door."""
    value = st.sampled_from((*ODD, *TARGETS, *SOURCES)) | st.sampled_from(ODD) | TYPED
    flag = st.sampled_from([*flags_of(door), "--help", "--nothing", "--run.nothing", "--run"])
    given = st.tuples(flag, value) | st.tuples(flag) | st.builds(lambda name, word: (f"{name}={word}",), flag, value)
    first = st.sampled_from(FIRST.get(door, TARGETS))
    words = st.tuples(st.tuples(first | first | value), st.lists(given | given | st.tuples(value), max_size=4))
    begins = ("--variant", "both") if door == "launch" else ()
    second = ("out",) if door == "pack" else ()

    def command(parts: tuple[tuple[str, ...], list[tuple[str, ...]]]) -> Case:
        before, after = parts
        argv = [*begins, *(before if door not in ("launch", "doctor", "drill") else ()), *second, *(word for group in after for word in group)]
        return Case(door, json.dumps([*argv, *TAILS.get(door, ())]).encode())

    return words.map(command)


def bench(folder: Path) -> Bench:
    """Every command ends with 0, 1 or 2, and says in words what is wrong with it."""
    box = prepare(folder / "place")
    pack(box.path / "source", box.path / "packed")
    os.mkfifo(box.path / "pipe")
    (box.path / "source.csv").write_text("path,label\n" + "".join(f"source/A/{n}.png,A\n" for n in range(0, 24, 2)))
    (box.path / "site.yaml").write_text("partition: gpu\n")
    (box.path / "run.yaml").write_text((box.path / RUN / "run.yaml").read_text())
    box.keep()

    def play(case: Case) -> None:
        try:
            knock(case.name, *json.loads(case.content), cwd=box.path)
        finally:
            box.restore()

    return Bench(st.one_of(*map(lines_of, NAMES)), play)

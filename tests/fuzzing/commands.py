"""Command lines of every front door, typed in a folder with images, packed images and a study."""

import json
import os
import re
from pathlib import Path

from doors import DOORS, run_door
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fuzzing.inputs import Bench, Case
from fuzzing.packed import pack
from fuzzing.places import Place, knock
from fuzzing.study import STOPPED, STUDY, TRAINED, prepare

NAMES = sorted(path.stem for path in DOORS.glob("[a-z]*.py"))
# Typed last, so that nothing is trained, scored, fetched or spread over processes: the last flag counts.
LAST = {
    "launch": "--dry-run",
    "train": "--run.data=nowhere",
    "drill": "--data=nowhere",
    "pack": "--workers=1",
}
# Typed first.
TARGETS = [STUDY, STOPPED, "old", "runs/none", "runs", "shards/tiny"]
SOURCES = [
    "source",
    "packed",
    "source.csv",
    "/proc",
    *map("phantom:{}".format, ("16", "15", "9" * 11, "\u0661\u0666")),
]
FIRST = {"pack": SOURCES, "train": ["runs/new/a", STOPPED, "source/A/0.png"], "weights": ["check", "fetched"]}
# Doors with no word before their flags.
BARE = ("launch", "drill", "doctor")
PLAIN = f"""
. .. /dev/null pipe ~x ~ [/x] -- - -1 @x 0 1 2 3 16 1.5 1e999 nan inf -inf true null [1,2 [] [[]] {{ [*a] &a
1_000 {2**31} {2**63} {2**70} =1+1 smoke inception both all local slurm debug auto hold release pad folder
out new/out site.yaml example run.yaml !!python/name:os.system
"""
ODD = ["", " ", "x" * 300, "x" * 5000, "9" * 5000, "\x1b[31m", "a\nb", "{a: 1}", "\udcff", "\u202e", "\u0663"]
ODD += PLAIN.split()
# No command line can hold a NUL, and bytes that are no UTF-8 arrive as halves of characters.
TYPED = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


def lines_of(door: str) -> SearchStrategy[Case]:
    """Command lines of one door."""
    flags = re.findall(r"^\s+(--[\w.-]+)", run_door(door, "--help").stdout, re.MULTILINE)
    flag = st.sampled_from([*flags, "--nothing", "--run.nothing", "--run"])
    value = st.sampled_from([*ODD, *TARGETS, *SOURCES]) | st.sampled_from(ODD) | TYPED
    given = (
        st.tuples(flag, value)
        | st.builds(lambda name, word: (f"{name}={word}",), flag, value)
        | st.tuples(flag)
    )
    first = [] if door in BARE else [st.sampled_from(FIRST.get(door, TARGETS)) | value]
    begin = {"launch": ["--variant=both"], "pack": ["out"]}.get(door, [])

    def case(words: tuple[str, ...], groups: list[tuple[str, ...]]) -> Case:
        argv = [*words, *begin, *sum(groups, ()), *([LAST[door]] if door in LAST else [])]
        return Case(door, json.dumps(argv).encode())

    return st.builds(case, st.tuples(*first), st.lists(given | given | st.tuples(value), max_size=4))


def bench(folder: Path) -> Bench:
    """Every command ends with 0, 1 or 2, and says in words what is wrong with it."""
    path = folder / "place"
    prepare(path)
    pack(path / "source", path / "packed")
    os.mkfifo(path / "pipe")
    (path / "source.csv").write_text(
        "path,label\n" + "".join(f"source/A/{n}.png,A\n" for n in range(0, 24, 2))
    )
    (path / "site.yaml").write_text("partition: gpu\n")
    (path / "run.yaml").write_text((path / TRAINED / "run.yaml").read_text())
    place = Place(path)

    def play(case: Case) -> None:
        with place.holding():
            knock(case.name, *json.loads(case.content), cwd=path)

    return Bench(st.one_of(*map(lines_of, NAMES)), play)

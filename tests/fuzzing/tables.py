"""CSV sources: odd columns, quotes, encodings, paths and patients."""

import os
import re
import shutil
import unicodedata
import zlib
from itertools import chain
from pathlib import Path

from hypothesis import strategies as st
from pictures import grey

from data_prep.pack_plan import PackOptions, Plan, plan
from fuzzing.damage import damaged
from fuzzing.inputs import Bench, Case, Fault, Finding
from fuzzing.places import knock

NAMES = [f"{number}.png" for number in range(12)]
# Packing starts a process, so only so many are packed.
PACKED_EACH = 8
HEADERS = ["path,label,split,patient"] * 6 + [
    "path",
    "path,patient",
    "path,path",
    "label,split",
    "path;label",
]
HEADERS += ["\ufeffpath,label", "path,label,extra", "", " path,label", "path,split,"]
PATHS = [*NAMES, *NAMES, "./0.png", "../tables/1.png", "", "none.png", "/dev/zero", "a\0b", "..", "x" * 5000]
LABELS = ["", "A", "B", " A", "[/x]", "a\0b", "x" * 3000, "\x1b[31m", "\u202e", '"', "A\tB"]
PATIENTS = ["", "p1", " p1", "p1 ", "P1", "p\u00e9", "pe\u0301", "01", "1", "\u00a0p1", '"p1', "=1+1"]
SPLITS = ["", "", "train", "val", "test", "Train ", "valid", "dev"]
ENDINGS = ["\n", "\r\n", "\r", "\n\n"]


def csv_of(header: str, rows: list[tuple[str, ...]], ending: str, quote: str) -> bytes:
    """A CSV as editors and programs write it."""
    lines = [",".join(f"{quote}{cell}{quote}" for cell in row) for row in rows]
    return ending.join([header, *lines, ""]).encode()


def judge_plan(accepted: Plan, content: bytes, root: Path) -> None:
    """Raise a Finding if rows were lost, or a file or a patient is where it must not be."""
    items = list(accepted.items())
    rows = [row for row in re.split(r"\r\n|\r|\n", content.decode("utf-8-sig", "surrogateescape")) if row][1:]
    if b'"' not in content and len(items) != len(rows):
        raise Finding(Fault.ACCEPTED, "there are not as many images as rows")
    files = {os.path.normpath(root / (item.path or item.key)) for item in items}
    if len(files) < len(items):
        raise Finding(Fault.ACCEPTED, "one file is listed twice")
    pairs = chain.from_iterable(
        [(item.group, shard.split) for item in shard.items] for shard in accepted.shards
    )
    sides = {(unicodedata.normalize("NFC", patient).strip(), split) for patient, split in pairs if patient}
    if len({patient for patient, _ in sides}) < len(sides):
        raise Finding(Fault.ACCEPTED, "a patient is in two splits")


def bench(folder: Path) -> Bench:
    """What is accepted has as many images as rows, each file once, and no patient on two sides."""
    root = folder / "tables"
    root.mkdir()
    for number, name in enumerate(NAMES):
        grey(number, 16, 16).save(root / name)
    row = st.tuples(*map(st.sampled_from, (PATHS, LABELS, SPLITS, PATIENTS)))
    rows = st.lists(row, min_size=1, max_size=8) | st.lists(
        row | row.map(lambda cells: cells[:2]), max_size=6
    )
    built = st.builds(
        csv_of, *map(st.sampled_from, (HEADERS,)), rows, *map(st.sampled_from, (ENDINGS, ["", "", '"']))
    )
    good = csv_of(
        HEADERS[0], [(name, "AB"[n % 2], "", f"p{n // 2}") for n, name in enumerate(NAMES)], "\n", ""
    )

    def play(case: Case) -> None:
        path, out = root / case.name, folder / "out"
        path.write_bytes(case.content)
        shutil.rmtree(out, ignore_errors=True)
        judge_plan(plan(str(path), out, PackOptions(size_px=16), write=False), case.content, root)
        if zlib.crc32(case.content) % PACKED_EACH == 0:
            knock("pack", path, out, "--size", "16", "--max-bad", "1", "--workers", "1")

    return Bench(st.builds(Case, st.just("a.csv"), built | built | damaged(good)), play)

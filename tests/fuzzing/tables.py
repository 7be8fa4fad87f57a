"""CSV sources: odd columns, quotes, encodings, paths and patients."""

import csv
import io
import os
import re
import shutil
import unicodedata
import zlib
from pathlib import Path

from fuzzing.inputs import Bench, Case, Fault, Finding, damaged, knock
from hypothesis import strategies as st
from pictures import grey

from data_prep.pack_plan import PackOptions, Plan, plan
from data_prep.sources import unescape

NUM_IMAGES = 12
# Packing starts a process.
PACKED_EACH = 10
OPTIONS = PackOptions(size_px=16)
HEADERS = ("path,label,split,patient", "path", "path,patient", "path,path", "label,split", "\ufeffpath,label", "path;label", "path,label,extra", "", " path,label", "path,split,")
PATIENTS = ("", "p1", " p1", "p1 ", "P1", "p\u00e9", "pe\u0301", "01", "1", "\u00a0p1", '"p1', "=1+1")
LABELS = ("", "A", "B", " A", "[/x]", "a\x00b", "x" * 3000, "\x1b[31m", "\u202e", '"', "A\tB")
SPLITS = ("", "train", "val", "test", "Train ", "valid", "dev")


def rows_of(header: str, rows: list[tuple[str, ...]], ending: str, quote: str) -> bytes:
    """A CSV as text editors and programs write it."""
    lines = [",".join(f"{quote}{cell}{quote}" for cell in row) for row in rows]
    return (ending.join([header, *lines]) + ending).encode("utf-8", "surrogateescape")


def bench(folder: Path) -> Bench:
    """What is accepted has as many images as lines, each file once, and no patient on two sides."""
    root = folder / "tables"
    root.mkdir()
    names = [f"{number}.png" for number in range(NUM_IMAGES)]
    for number, name in enumerate(names):
        grey(number, 16, 16).save(root / name)
    paths = (*names, f"./{names[0]}", f"../tables/{names[1]}", str(root / names[2]), "", "none.png", "/dev/zero", "a\x00b", "\udcff.png", "..", "x" * 5000)
    row = st.tuples(st.sampled_from((*names, *paths)), st.sampled_from(LABELS), st.sampled_from(SPLITS), st.sampled_from(PATIENTS))
    odd_row = row | st.lists(st.sampled_from((*PATIENTS, *LABELS)), max_size=6).map(tuple)
    built = st.builds(
        rows_of,
        st.sampled_from(HEADERS[:1] * 5 + HEADERS),
        st.lists(row, min_size=1, max_size=8) | st.lists(odd_row, max_size=8),
        st.sampled_from(("\n", "\r\n", "\r", "\n\n")),
        st.sampled_from(("", "", '"')),
    )
    good = rows_of(HEADERS[0], [(name, "AB"[n % 2], "", f"p{n // 2}") for n, name in enumerate(names)], "\n", "").strip()

    def play(case: Case) -> None:
        path = root / case.name
        path.write_bytes(case.content)
        judge_plan(plan(str(path), folder / "out", OPTIONS, write=False), case.content, root)
        if zlib.crc32(case.content) % PACKED_EACH:
            return
        knock("pack", path, folder / "out", "--size", "16", "--max-bad", "1", "--workers", "1")
        shutil.rmtree(folder / "out")

    return Bench(st.builds(Case, st.just("a.csv"), built | built | damaged(good)), play)


def judge_plan(accepted: Plan, content: bytes, root: Path) -> None:
    """Raise a Finding if rows were lost, or a file or a patient is where it must not be."""
    items = list(accepted.items())
    lines = [line for line in re.split(r"\r\n|\r|\n", content.decode("utf-8-sig", "surrogateescape")) if line]
    if b'"' not in content and len(items) != len(lines) - 1:
        raise Finding(Fault.ACCEPTED, f"{len(lines) - 1} rows became {len(items)} images")
    if b'"' in content and sum(1 for _ in csv.reader(io.StringIO("\n".join(lines)))) > len(items) + 1:
        raise Finding(Fault.ACCEPTED, "rows were lost")
    files = [os.path.normpath(root / unescape(item.path or item.key)) for item in items]
    if len(set(files)) < len(files):
        raise Finding(Fault.ACCEPTED, "one file is listed twice")
    splits: dict[str, set[str]] = {}
    for shard in accepted.shards:
        for item in shard.items:
            splits.setdefault(unicodedata.normalize("NFC", item.group).strip(), set()).add(shard.split)
    if any(patient and len(found) > 1 for patient, found in splits.items()):
        raise Finding(Fault.ACCEPTED, "a patient is in two splits")

"""Packed folders: shards, manifest, audit and plan that were damaged, edited or forged."""

import io
import json
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pictures import grey

from data_prep import audit
from data_prep.manifest import write_manifest
from data_prep.pack_plan import PackOptions, plan
from data_prep.packer import finalize, pack_part
from fuzzing.damage import damaged, flipped, wrong_json
from fuzzing.inputs import Bench, Case, Fault, Finding
from fuzzing.places import Place, knock
from fuzzing.tables import PACKED_EACH
from vae.training.data_loader import load_split

MANIFEST = "manifest.json"
# Before the name of a shard that the manifest is made to fit.
FORGED = "forged/"
PARTS = "labels crc32 key group source_sha256 source_mode source_bytes quarantined images"
ATTRIBUTES = "format num_images class_names recipe plan_sha256 split complete"
SECRET_FILE = "/etc/hostname"
ODD: list[Any] = [
    np.zeros(()),
    np.zeros(0),
    np.zeros(9),
    np.zeros((3, 3)),
    np.full(10, np.nan),
    np.full(10, 200, np.uint8),
]
ODD += [np.zeros(10, np.int64) - 1, np.array([b"\xff"] * 10), np.zeros(10, [("a", "i4")]), "text", 3, -1]
ODD += ["[]", '["A"]', '[{"key": 1}]', "{}", "[" * 50_000, "\x1b[31m", np.array([b"\x1b[31m"] * 10)]


def forged(content: bytes, part: str, how: str, odd: int) -> bytes:
    """A shard with one dataset or attribute that is odd, gone, huge, or held in another file."""
    memory = io.BytesIO(content)
    with h5py.File(memory, "r+") as file:
        if part in file.attrs:
            file.attrs[part] = ODD[odd] if odd < len(ODD) else h5py.Empty("f")
        elif how == "odd":
            del file[part]
            file[part] = ODD[odd % len(ODD)]
        else:
            old = file[part][()]
            del file[part]
            if how == "external":
                file.create_dataset(
                    part, np.shape(old), "u1", external=[(SECRET_FILE, 0, h5py.h5f.UNLIMITED)]
                )
            elif how == "link":
                file[part] = h5py.ExternalLink(SECRET_FILE, "/x")
            elif how == "huge":
                file.create_dataset(part, (1 << 30,), "u1", compression="gzip", chunks=(1 << 20,))
            elif how == "group":
                file.create_group(part)
    return memory.getvalue()


def reads_other_files(content: bytes) -> bool:
    """Whether a part of a shard lies in another file."""
    with h5py.File(io.BytesIO(content)) as file:
        links = {name: file.get(name, getlink=True) for name in file}
        if any(isinstance(link, h5py.ExternalLink) for link in links.values()):
            return True
        return any(isinstance(file[name], h5py.Dataset) and file[name].external for name in links)


def differs(case: Case, original: bytes) -> bool:
    """Whether a file says something else than the original: of JSON, spaces say nothing."""
    if not case.name.endswith(".json"):
        return case.content != original
    try:
        return bool(json.loads(case.content) != json.loads(original))
    except (ValueError, RecursionError):
        return True


def pack(source: Path, out: Path) -> None:
    """Pack a few pictures and a file that is none."""
    for number in range(24):
        path = source / "AB"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey(number, 16, 16).save(path)
    (source / "A" / "bad.png").write_text("none")
    plan(str(source), out, PackOptions(size_px=16, shard_images=10, max_bad=0.2))
    pack_part(out)
    finalize(out)
    for lock in out.glob(".packing*"):
        lock.unlink()


def bench(folder: Path) -> Bench:
    """`--verify` passes only what was packed; forged shards are refused or read, in training too."""
    source, out = folder / "source", folder / "packed"
    pack(source, out)
    place = Place(out)
    manifest, shards = (
        json.loads(place.files[MANIFEST]),
        [name for name in place.files if name.endswith(".h5")],
    )
    again = ("pack", source, out, "--size=16", "--shard-images=10", "--max-bad=0.2", "--workers=1")

    def play(case: Case) -> None:
        name = case.name.removeprefix(FORGED)
        with place.holding(Case(name, case.content)):
            if name != case.name:
                play_forged(case)
            elif knock("pack", out, "--verify").returncode == 0 and differs(case, place.files[name]):
                raise Finding(Fault.ACCEPTED, f"--verify passes a changed {name}")
            knock("pack", out, "--audit")
            if zlib.crc32(case.content) % PACKED_EACH == 0:
                knock(*again)

    def play_forged(case: Case) -> None:
        classes = tuple(manifest["class_names"])
        write_manifest(out, manifest["recipe"], classes, shards)
        knock("pack", out, "--verify")
        audit.write(out, shards, classes)
        for split in manifest["splits"]:
            load_split(out, split).take(np.arange(1))
        if reads_other_files(case.content):
            raise Finding(Fault.ACCEPTED, "a shard reads another file")

    def of_file(name: str) -> SearchStrategy[Case]:
        damage = wrong_json if name.endswith(".json") else damaged
        return (flipped(place.files[name]) | damage(place.files[name])).map(lambda data: Case(name, data))

    hows = st.sampled_from(("odd", "odd", "odd", "external", "link", "huge", "group", "drop"))
    parts, odd = st.sampled_from(f"{PARTS} {PARTS} {ATTRIBUTES}".split()), st.integers(0, len(ODD))
    forgeries = st.sampled_from(shards).flatmap(
        lambda name: st.builds(forged, st.just(place.files[name]), parts, hows, odd).map(
            lambda data: Case(FORGED + name, data)
        )
    )
    return Bench(st.one_of(*map(of_file, place.files), forgeries), play)

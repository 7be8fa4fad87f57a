"""Packed folders: shards, manifest, audit and plan that were damaged, edited or forged."""

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzzing.inputs import Bench, Case, Fault, Finding, Folder, damaged, flipped, knock, wrong_json
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pictures import grey

from data_prep import audit
from data_prep.packer import finalize, pack_part
from data_prep.pack_plan import PackOptions, plan
from data_prep.shards import write_manifest
from vae.training.data_loader import load_split

MANIFEST = "manifest.json"
FORGED = "forged/"  # the manifest is made to fit it
ODD_ARRAYS: tuple[Any, ...] = (
    np.zeros(0, np.uint8), np.zeros((3, 3), np.uint8), np.full(8, np.nan), np.zeros(8, np.int64) - 1, np.full(8, 200, np.uint8),
    np.array([b"\xff\xfe"] * 8), np.zeros(()), np.zeros(8, [("a", "i4")]), np.array([b"[{}]"]), "text", '[{"key": 1}]', "[" * 50_000, 3, np.zeros(9, np.uint8),
)


def forged(content: bytes, name: str, how: str, odd: int) -> bytes:
    """A shard with one dataset or attribute of another kind, held elsewhere, or huge."""
    memory = io.BytesIO(content)
    with h5py.File(memory, "r+") as file:
        if name in file.attrs:
            del file.attrs[name]
            if how != "drop":
                file.attrs[name] = (np.zeros(3), '["A"]', "[" * 50_000, -1, "{}")[odd % 5]
            return _closed(file, memory)
        old = file[name][()]
        del file[name]
        if how == "odd":
            file[name] = ODD_ARRAYS[odd % len(ODD_ARRAYS)]
        elif how == "external":
            file.create_dataset(name, shape=np.shape(old), dtype="u1", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])
        elif how == "link":
            file[name] = h5py.ExternalLink("/etc/hostname", "/x") if odd % 2 else h5py.SoftLink("/nowhere")
        elif how == "huge":
            file.create_dataset(name, shape=(1 << (27 + odd % 5),), dtype="u1", compression="gzip", chunks=(1 << 20,))
        elif how == "group":
            file.create_group(name)
        elif how == "chunked":
            file.create_dataset(name, data=old, **({"chunks": True, "compression": "gzip"} if np.ndim(old) else {}))
        return _closed(file, memory)


def _closed(file: h5py.File, memory: io.BytesIO) -> bytes:
    file.close()
    return memory.getvalue()


def differs(case: Case, original: bytes) -> bool:
    """Whether a file says something else than the original: of JSON, spaces say nothing."""
    if not case.name.endswith(".json"):
        return case.content != original
    try:
        return bool(json.loads(case.content) != json.loads(original))
    except (ValueError, RecursionError):
        return True


def is_elsewhere(content: bytes) -> bool:
    """Whether a part of a shard lies in another file."""
    with h5py.File(io.BytesIO(content)) as file:
        links = [file.get(name, getlink=True) for name in file]
        own = [file[name] for name, link in zip(file, links, strict=True) if isinstance(link, h5py.HardLink)]
        return any(isinstance(link, h5py.ExternalLink) for link in links) or any(getattr(part, "external", None) for part in own)


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


def bench(folder: Path) -> Bench:
    """`--verify` passes only what was packed; forged shards are refused or read, by `--audit` and training too."""
    source, out = folder / "source", folder / "packed"
    pack(source, out)
    for lock in out.glob(".packing*"):
        lock.unlink()
    box = Folder(out)
    manifest = json.loads(box.files[MANIFEST])
    shards = sorted(path.name for path in out.glob("*.h5"))
    again = ("pack", source, out, "--size", "16", "--shard-images", "10", "--max-bad", "0.2", "--workers", "1")

    def strategy(name: str) -> SearchStrategy[Case]:
        content = box.files[name]
        contents = flipped(content) | (wrong_json(content) if name.endswith(".json") else damaged(content))
        return contents.map(lambda data: Case(name, data))

    parts = ("labels", "crc32", "key", "group", "source_sha256", "source_mode", "source_bytes", "quarantined", "images")
    parts += ("format", "num_images", "class_names", "recipe", "plan_sha256", "split", "complete")
    hows = st.sampled_from(("odd", "odd", "odd", "drop", "external", "link", "group", "chunked", "huge"))
    shard = st.sampled_from(shards)
    forgeries = st.builds(
        lambda name, part, how, odd: Case(FORGED + name, forged(box.files[name], part, how, odd)),
        shard, st.sampled_from(parts), hows, st.integers(0, 31),
    )

    def play(case: Case) -> None:
        if case.name.startswith(FORGED):
            play_forged(Case(case.name.removeprefix(FORGED), case.content))
            return
        with box.holding(case):
            if knock("pack", out, "--verify").returncode == 0 and differs(case, box.files[case.name]):
                raise Finding(Fault.ACCEPTED, f"--verify passes a changed {case.name}")
            knock("pack", out, "--audit")
            knock(*again)

    def play_forged(case: Case) -> None:
        with box.holding(case):
            write_manifest(out, manifest["recipe"], tuple(manifest["class_names"]), shards)
            knock("pack", out, "--verify")
            knock("pack", out, "--audit")
            audit.write(out, shards, tuple(manifest["class_names"]))
            for split in manifest["splits"]:
                load_split(out, split).take(np.arange(1))
            if is_elsewhere(case.content):
                raise Finding(Fault.ACCEPTED, "a part of a shard lies in another file")

    return Bench(st.one_of(*map(strategy, box.files)) | forgeries, play)

"""Packed folders to be damaged: signed anew, as an older version left them, and with single bits changed."""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from data_prep.files import as_json, sha256_file
from data_prep.manifest import MANIFEST_FILE, Manifest


def sign(folder: Path) -> None:
    """Make all digests in manifest.json fit again, as somebody would who wants to go unseen."""
    path = folder / MANIFEST_FILE
    values = json.loads(path.read_text())
    for shard in [shard for shards in values["splits"].values() for shard in shards]:
        shard |= {"sha256": sha256_file(folder / shard["name"])}
        shard |= {"num_bytes": (folder / shard["name"]).stat().st_size}
    values["files"] = {name: sha256_file(folder / name) for name in values["files"]}
    values |= {"fingerprint": msgspec.convert(values, Manifest).digest_of_images(), "digest": ""}
    path.write_text(as_json({**values, "digest": hashlib.sha256(as_json(values).encode()).hexdigest()}))


def make_older(folder: Path) -> None:
    """Write manifest.json as it was before it had digests of itself and of the files beside the shards."""
    path = folder / MANIFEST_FILE
    values = json.loads(path.read_text())
    del values["digest"], values["files"]
    path.write_text(as_json({**values, "format": 1}))


@contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """A file with one bit changed, for a while."""
    flip(path, bit)
    try:
        yield
    finally:
        flip(path, bit)


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b", buffering=0) as file:
        file.seek(bit // 8)
        (value,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([value ^ 1 << bit % 8]))


def some_bits(path: Path, count: int) -> list[int]:
    """Bits of a file, all over it, the same each time."""
    num_bits = 8 * path.stat().st_size
    return sorted(random.Random(path.name).sample(range(num_bits), min(count, num_bits)))

"""The manifest of a packed folder: its shards, what made them, and digests over all that is there.

`manifest.json` is written after everything else, so a folder with a manifest is whole. Readers open the
manifest, never a glob. Two digests stand in it:
    fingerprint    of the images: recipe, class names and the SHA-256 of each shard. Runs remember it: equal
                   means the same data, wherever they came from and whatever lies beside them
    digest         SHA-256 of manifest.json without these 64 digits, so of every field in it; among them, in
                   `files`, the SHA-256 of audit.json, plan.json, quarantine.jsonl and .patient-salt
What it says about a shard is compared with the shard itself whenever that is opened, see `shard_reader`.

Manifests of format 1 have no `digest`, so they are compared with the shards at once. Finalized again they get
one and keep their fingerprint.
"""

import hashlib
import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from data_prep.errors import DamagedFile, DataError, ToolkitError
from data_prep.files import as_json, sha256_file, write_text
from data_prep.json_records import Record, decode, read_bytes
from data_prep.shard_reader import REPACK_HINT, check_length, check_shard, describe_shard
from data_prep.shards import FORMAT, SPLITS, Recipe, ShardInfo, Side

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = 2
WITHOUT_DIGEST = 1

FileName = Annotated[str, msgspec.Meta(pattern=r"^\.?\w[\w-]*(\.\w+)?\Z")]


class Manifest(Record, frozen=True, kw_only=True):
    """A packed data set: its shards in order, and the recipe that made them."""

    IF_DAMAGED: ClassVar[str] = REPACK_HINT

    format: int = WITHOUT_DIGEST
    fingerprint: str
    """Digest of the images: equal means the same data."""

    digest: str = ""
    """Of this file; empty in format 1."""

    image_size_px: Side
    class_names: tuple[str, ...]
    recipe: Recipe
    files: dict[FileName, str] = msgspec.field(default_factory=dict)
    """SHA-256 of what else is in the folder, by name."""

    splits: dict[str, tuple[ShardInfo, ...]]

    def __post_init__(self) -> None:
        """Raise ValueError if the fields contradict each other."""
        for split, shards in self.splits.items():
            for shard in shards:
                said = (shard.split, shard.image_size_px, len(shard.class_counts))
                if said != (split, self.image_size_px, len(self.class_names)):
                    raise ValueError(f"{shard.name} is of another split, size or classes than the rest")
        if len({shard.name for shard in self.shards()}) != len(self.shards()):
            raise ValueError("a shard is named twice")

    def shards(self) -> list[ShardInfo]:
        """All shards, split by split."""
        return list(chain.from_iterable(self.splits.values()))

    def digest_of_images(self) -> str:
        """SHA-256 over recipe, class names and shard digests."""
        digests = {split: [shard.sha256 for shard in shards] for split, shards in self.splits.items()}
        text = json.dumps([FORMAT, self.recipe, self.class_names, digests], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def num_images(self, split: str) -> int:
        """Number of images in a split; 0 if there is no such split."""
        return sum(shard.num_images for shard in self.splits.get(split, ()))


def write_manifest(
    folder: Path, recipe: Recipe, class_names: tuple[str, ...], names: Iterable[str], kept: Iterable[str] = ()
) -> Manifest:
    """Write manifest.json over the shards `names`, in this order, and those of `kept` that are there."""
    shards = [describe_shard(folder / name, len(class_names)) for name in names]
    splits = {split: tuple(shard for shard in shards if shard.split == split) for split in SPLITS}
    manifest = Manifest(
        format=MANIFEST_FORMAT,
        fingerprint="",
        image_size_px=int(recipe["size_px"]),
        class_names=class_names,
        recipe=recipe,
        files={name: sha256_file(folder / name) for name in kept if (folder / name).exists()},
        splits={split: members for split, members in splits.items() if members},
    )
    manifest = msgspec.structs.replace(manifest, fingerprint=manifest.digest_of_images())
    unsigned = as_json(msgspec.to_builtins(manifest)).encode()
    manifest = msgspec.structs.replace(manifest, digest=hashlib.sha256(unsigned).hexdigest())
    write_text(folder / MANIFEST_FILE, as_json(msgspec.to_builtins(manifest)))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data set; DataError if it or a shard is missing or short, DamagedFile if edited."""
    manifest = read_alone(folder)
    for shard in manifest.shards():
        check_length(folder, shard)
        if manifest.format == WITHOUT_DIGEST:
            check_shard(folder, shard)
    return manifest


def read_alone(folder: Path) -> Manifest:
    """The manifest as `read_manifest` gives it, without a look at the shards."""
    path = folder / MANIFEST_FILE
    content = read_bytes(path)
    if content is None:
        manifests = [*folder.glob(f"*/{MANIFEST_FILE}"), *folder.parent.glob(f"*/{MANIFEST_FILE}")]
        near = ", ".join(sorted({str(manifest.parent) for manifest in manifests})[:5])
        hint = f"packed images are in {near}" if near else "python jobs/pack.py SOURCE OUT packs some"
        raise DataError(f"no packed images at {folder}: {path.name} is missing", hint)
    manifest = decode(content, msgspec.json.Decoder(Manifest), str(path), REPACK_HINT)
    if manifest.format not in (WITHOUT_DIGEST, MANIFEST_FORMAT):
        known = f"this version reads {WITHOUT_DIGEST} and {MANIFEST_FORMAT}"
        hint = "use the version that packed it, or pack the images again into another folder"
        raise DamagedFile(f"{path} has format {manifest.format}; {known}", hint)
    if not is_as_written(manifest, content):
        raise DamagedFile(f"{path} is damaged: it is not as it was written", REPACK_HINT)
    return manifest


def is_as_written(manifest: Manifest, content: bytes) -> bool:
    """Whether the digests in a manifest fit, the only one of format 1 or both, and the bytes of its file."""
    unsigned = hashlib.sha256(content.replace(manifest.digest.encode(), b"", 1)).hexdigest()
    is_whole = manifest.digest == (unsigned if manifest.format == MANIFEST_FORMAT else "")
    return is_whole and manifest.fingerprint == manifest.digest_of_images()


def refuse_changed(folder: Path, names: Iterable[str]) -> None:
    """Raise DataError if there is a manifest and one of these shards is no longer the one that it names."""
    try:
        known = {shard.name: shard.sha256 for shard in read_alone(folder).shards()}
    except ToolkitError:
        return  # nothing to compare with
    for name in names:
        path = folder / name
        if name in known and path.exists() and sha256_file(path) != known[name]:
            raise DataError(f"{path} has changed since it was packed", REPACK_HINT)

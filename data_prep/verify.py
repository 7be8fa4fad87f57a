"""Compares every byte of a packed folder with the digests in its manifest."""

import hashlib
from pathlib import Path

from data_prep.audit import AUDIT_FILE
from data_prep.errors import DataError
from data_prep.files import sha256_file
from data_prep.json_records import read_bytes
from data_prep.manifest import MANIFEST_FILE, WITHOUT_DIGEST, read_manifest
from data_prep.pack_plan import PLAN_FILE
from data_prep.packer import KEPT_FILES
from data_prep.shard_reader import REPACK_HINT, open_shard
from data_prep.shards import ShardInfo, damaged_images
from data_prep.sources import SALT_FILE

SALT_HINT = "restore it from a copy: by it alone the same names get the same hashes"


def verify(folder: Path) -> int:
    """Compare every byte with its digests; the images checked, or a DataError that names what has changed."""
    manifest = read_manifest(folder)
    found = {shard.name: shard_damage(folder, shard) for shard in manifest.shards()}
    found |= {name: file_damage(folder / name, sha256) for name, sha256 in manifest.files.items()}
    damage = {name: text for name, text in found.items() if text}
    if damage:
        hint = SALT_HINT if damage.keys() == {SALT_FILE} else REPACK_HINT
        raise DataError(f"{folder} is damaged: {'; '.join(damage.values())}", hint)
    return sum(map(manifest.num_images, manifest.splits))


def shard_damage(folder: Path, shard: ShardInfo) -> str:
    """Which images of a shard have changed, or that the change lies elsewhere; empty if there is none."""
    try:
        path = folder / shard.name
        is_whole, crc32 = sha256_file(path) == shard.sha256, open_shard(folder, shard).crc32
        images = damaged_images(path, shard.data_offset, shard.image_size_px, crc32)
    except (DataError, OSError) as error:
        return str(error)
    if images:
        return f"{shard.name} in {len(images)} images {images[:5]}"
    return "" if is_whole else f"{shard.name} outside the image data"


def file_damage(path: Path, sha256: str) -> str:
    """That a file has changed, or that the audit is missing; empty if neither.

    The others name the source's files, so they stay behind where a folder is passed on.
    """
    content = read_bytes(path)
    if content is None:
        return f"{path.name} is missing" if path.name == AUDIT_FILE else ""
    return "" if hashlib.sha256(content).hexdigest() == sha256 else f"{path.name} has changed"


def not_compared(folder: Path) -> str:
    """What `verify` had no digest of or did not find, and what to do; empty if it has compared everything."""
    manifest = read_manifest(folder)
    is_there = {name: (folder / name).exists() for name in KEPT_FILES}
    if manifest.format == WITHOUT_DIGEST:
        unknown = ", ".join([MANIFEST_FILE, *(name for name in KEPT_FILES if is_there[name])])
        command = f"{folder} --finalize" if is_there[PLAN_FILE] else "SOURCE OUT"
        add = f"to add them: python jobs/pack.py {command}"
        return f"packed by an older version, without digests of {unknown}, which were not compared; {add}"
    away = [name for name in manifest.files if not is_there.get(name)]
    return f"not there, so not compared: {', '.join(away)}" if away else ""

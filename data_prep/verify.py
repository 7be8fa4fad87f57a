"""Verification: every byte of packed shards against the digests in the manifest and in the shards."""

from pathlib import Path

from data_prep.errors import DataError
from data_prep.files import sha256_file
from data_prep.shards import REPACK_HINT, ShardInfo, damaged_images, read_crc32, read_manifest


def verify(folder: Path) -> int:
    """Compare every byte with its digests; the images checked, or a DataError that names what has changed."""
    shards = read_manifest(folder).shards()
    damaged = [shard for shard in shards if sha256_file(folder / shard.name) != shard.sha256]
    if damaged:
        damage = "; ".join(describe_damage(folder, shard) for shard in damaged)
        raise DataError(f"{folder} is damaged: {damage}", REPACK_HINT)
    return sum(shard.num_images for shard in shards)


def describe_damage(folder: Path, shard: ShardInfo) -> str:
    """Which images of a shard have changed, or that the change lies outside the image data."""
    try:
        crc32 = read_crc32(folder, shard)
        images = damaged_images(folder / shard.name, shard.data_offset, shard.image_size_px, crc32)
    except (DataError, OSError):
        return f"{shard.name} cannot be read"
    damage = f"in {len(images)} images {images[:5]}" if images else "outside the image data"
    return f"{shard.name} {damage}"

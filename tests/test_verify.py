"""Verification: no byte of a packed shard can change unseen."""

from pathlib import Path

import pytest
from tiny import COUNTS, SIZE_PX, make_shards

from data_prep.errors import DataError
from data_prep.manifest import read_manifest
from data_prep.shards import ShardInfo
from data_prep.verify import verify


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A data set of its own, to be damaged."""
    return make_shards(tmp_path / "shards")


def flip_bit(folder: Path, shard: ShardInfo, offset: int) -> None:
    """Change one bit of a shard."""
    content = bytearray((folder / shard.name).read_bytes())
    content[offset] ^= 1
    (folder / shard.name).write_bytes(content)


def test_verify_finds_one_changed_pixel(packed: Path) -> None:
    assert verify(packed) == sum(COUNTS.values())
    shard = read_manifest(packed).splits["train"][0]
    flip_bit(packed, shard, shard.data_offset + 3 * SIZE_PX**2 + 17)
    with pytest.raises(DataError, match=r"train-00000\.h5.*3"):
        verify(packed)


@pytest.mark.parametrize(
    ("offset", "message"),
    [(0, r"val-00000\.h5 is not a readable shard: "), (4000, r"val-00000\.h5 outside the image data$")],
)
def test_damage_outside_the_images_is_told_from_a_shard_nobody_can_read(
    packed: Path, offset: int, message: str
) -> None:
    shard = read_manifest(packed).splits["val"][0]
    assert offset < shard.data_offset
    flip_bit(packed, shard, offset)
    with pytest.raises(DataError, match=message):
        verify(packed)

"""The shard format: an HDF5 file for every tool, a plain array for us, and never half of one."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny import CLASS_NAMES, COUNTS, SIZE_PX, blob, make_shards, record

from data_prep.errors import DataError
from data_prep.manifest import read_manifest
from data_prep.shard_reader import describe_shard, is_complete, open_shard, read_records, read_rejects
from data_prep.shards import Reject, write_shard

ATTRIBUTES = {"class_names": json.dumps(CLASS_NAMES), "split": "train", "plan_sha256": "p"}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A data set of its own, to be damaged."""
    return make_shards(tmp_path / "shards")


def test_hdf5_tools_and_the_memory_map_see_the_same_pixels(shards: Path) -> None:
    manifest = read_manifest(shards)
    assert {split: manifest.num_images(split) for split in COUNTS} == COUNTS
    shard = manifest.splits["train"][1]
    with h5py.File(shards / shard.name, "r") as file:
        images = file["images"]
        assert (images.chunks, images.compression, images.dtype) == (None, None, np.uint8)
        pixels = images[:]
    opened = open_shard(shards, shard)
    assert np.array_equal(pixels, opened.images)
    assert np.array_equal(opened.images[5], blob(45))
    assert shard.data_offset % 4096 == 0
    assert shard.num_bytes == shard.data_offset + 30 * SIZE_PX**2  # pixels last, so all else fits in memory
    assert opened.labels.tolist() == [n % 2 for n in range(40, 70)]
    assert opened.keys[0] == "train/40"


def test_map_is_read_only(shards: Path) -> None:
    images = open_shard(shards, read_manifest(shards).splits["val"][0]).images
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    left, right = make_shards(tmp_path / "a"), make_shards(tmp_path / "b")
    names = sorted(path.name for path in left.iterdir())
    assert names == sorted(path.name for path in right.iterdir())
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes()


def test_records_and_rejects_come_back(tmp_path: Path) -> None:
    path = tmp_path / "train-0.h5"
    reject = Reject("odd \u00e9 name", 1, "is empty", "")
    items = [(record("train", 0), blob(0).tobytes()), reject, (record("train", 1), blob(1).tobytes())]
    write_shard(path, SIZE_PX, ATTRIBUTES, items)
    assert read_records(path) == [record("train", 0), record("train", 1)]
    assert read_rejects(path) == [reject]
    info = describe_shard(path, num_classes=2)
    assert (info.num_images, info.class_counts, info.num_bytes) == (2, (1, 1), path.stat().st_size)


def test_shard_without_images_is_whole(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.h5", SIZE_PX, ATTRIBUTES, [Reject("a", 0, "is empty", "")])
    info = describe_shard(tmp_path / "s.h5", num_classes=2)
    assert info.num_images == 0
    assert open_shard(tmp_path, info).images.shape == (0, SIZE_PX, SIZE_PX)


def test_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def items() -> object:
        yield record("train", 0), blob(0).tobytes()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "s.h5", SIZE_PX, ATTRIBUTES, items())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_complete_means_of_this_plan(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    assert not is_complete(path, "p")
    write_shard(path, SIZE_PX, ATTRIBUTES, [(record("train", 0), blob(0).tobytes())])
    assert is_complete(path, "p")
    assert not is_complete(path, "another plan")
    for num_bytes in (-1, 3000):
        path.write_bytes(path.read_bytes()[:num_bytes])
        assert not is_complete(path, "p")


def test_short_shard_is_refused_before_it_is_mapped(packed: Path) -> None:
    """A map of a short file ends the process with SIGBUS."""
    path = packed / "val-00000.h5"
    manifest = read_manifest(packed)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="bytes, the manifest says"):
        open_shard(packed, manifest.splits["val"][0])
    with pytest.raises(DataError, match="bytes, the manifest says"):
        read_manifest(packed)


def test_damaged_columns_are_refused(packed: Path) -> None:
    shard = read_manifest(packed).splits["test"][0]
    path = packed / shard.name
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(DataError, match="not a readable shard"):
        open_shard(packed, shard)

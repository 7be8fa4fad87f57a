"""Batches: every image once an epoch, the same order for everyone, whichever way they are stored."""

import gc
import mmap
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import COUNTS, SIZE_PX, blob, make_shards, record

from data_prep.errors import DataError
from data_prep.manifest import read_manifest, write_manifest
from data_prep.shards import write_shard
from vae.training import data_loader
from vae.training.data_loader import (
    BatchPlan,
    batches,
    choose_loader,
    epoch_order,
    load_patients,
    load_split,
    rank_slice,
    step_noise,
    to_unit,
)
from vae.training.gather import OneByOne, SideBySide, gather_from

CPU = torch.device("cpu")


def test_split_reads_over_shards_in_any_order(shards: Path) -> None:
    split = load_split(shards, "train")
    assert len(split) == COUNTS["train"]
    chosen = [69, 0, 40, 39, 40]
    images = split.take(np.array(chosen))
    assert images.dtype == torch.uint8
    assert images.shape == (5, 1, SIZE_PX, SIZE_PX)
    for image, index in zip(images, chosen, strict=True):
        assert np.array_equal(image[0].numpy(), blob(index))
    assert split.keys[40] == "train/40"
    assert split.labels[:4].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("size_px", [48, 256])
@pytest.mark.parametrize("counts", [(1,), (5, 1, 7)])
def test_both_ways_to_gather_give_the_same_bytes(
    tmp_path: Path, size_px: int, counts: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    maps = []
    for number, count in enumerate(counts):
        path = tmp_path / f"{number}"
        pixels = rng.integers(0, 256, (count, size_px, size_px), np.uint8)
        path.write_bytes(bytes(mmap.PAGESIZE) + pixels.tobytes())
        maps.append(np.memmap(path, np.uint8, "r", mmap.PAGESIZE, pixels.shape))
    indices = rng.integers(0, sum(counts), 40)
    expected = np.concatenate(maps)[indices]
    for gather in (SideBySide(maps), OneByOne(maps)):
        found = np.zeros_like(expected)
        gather.copy_into(found, indices)
        assert np.array_equal(found, expected)


def test_the_way_to_gather_and_its_reason_are_logged(
    shards: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = load_split(shards, "train")
    plan = BatchPlan(len(split), 8, 5)
    with caplog.at_level("INFO"):
        fast = [batch.clone() for batch in batches(split, plan, 0, 8, CPU)]
    assert "host tier; a batch of images is one gather" in caplog.text
    monkeypatch.setattr("sys.platform", "darwin")
    split = load_split(shards, "train")
    with caplog.at_level("INFO"):
        plain = [batch.clone() for batch in batches(split, plan, 0, 8, CPU)]
    assert "images copied one by one: this is not Linux" in caplog.text
    assert torch.equal(torch.stack(fast), torch.stack(plain))


def test_without_addresses_or_page_borders_images_are_copied_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(bytes(mmap.PAGESIZE + 100))
    one = np.memmap(path, np.uint8, "r", 100, (1, 64, 64))
    assert "no border of this machine's pages" in gather_from([one]).how
    whole = np.memmap(path, np.uint8, "r", 0, (1, 64, 64))
    used = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, used[1]))
    try:
        gather = gather_from([whole])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, used)
    assert "cannot map them side by side: [Errno 12] Cannot allocate memory" in gather.how


def test_the_addresses_of_a_gather_are_given_back(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(bytes(64 * 64))

    def maps_of_the_file() -> int:
        return Path("/proc/self/maps").read_text().count(f"{path}\n")

    gather = SideBySide([np.memmap(path, np.uint8, "r", 0, (1, 64, 64))])
    images = gather.images[:1]
    del gather
    gc.collect()
    assert maps_of_the_file() == 1
    assert images[0, 0, 0] == 0
    del images
    gc.collect()
    assert maps_of_the_file() == 0


def test_patients_have_numbers_and_images_of_nobody_have_their_own(tmp_path: Path) -> None:
    names = {"train": ["a", "", "b", "a", ""], "test": ["x", "y", "x"], "val": ["z"]}
    shards = []
    for split, groups in names.items():
        shards.append(f"{split}-0.h5")
        attributes = {"class_names": '["A", "B"]', "split": split, "plan_sha256": "tiny"}
        items = [
            (replace(record(split, number), group=group), blob(number).tobytes())
            for number, group in enumerate(groups)
        ]
        write_shard(tmp_path / shards[-1], SIZE_PX, attributes, items)
    write_manifest(tmp_path, {"size_px": SIZE_PX}, ("A", "B"), shards)
    train, unit = load_patients(tmp_path, "train")
    assert (train.tolist(), unit) == ([0, 1, 2, 0, 3], "patients and images of unknown ones")
    test, unit = load_patients(tmp_path, "test")
    assert (test.tolist(), unit) == ([0, 1, 0], "patients")


def test_missing_split_names_those_that_are_there(shards: Path) -> None:
    with pytest.raises(DataError, match="no 'holdout' split; it has: train, val, test"):
        load_split(shards, "holdout")


@pytest.mark.parametrize("loader", ["host", "device"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_an_epoch_over_all_ranks_is_the_permutation(shards: Path, loader: str, world_size: int) -> None:
    split = load_split(shards, "train")
    order = epoch_order(5, 1, len(split))
    seen = []
    per_rank = [
        batches(split, BatchPlan(len(split), 8, 5, rank, world_size), 8, 16, CPU, loader)
        for rank in range(world_size)
    ]
    for parts in zip(*per_rank, strict=True):
        seen += [image for part in parts for image in part.clone()]
    assert len(seen) == 64  # 8 full batches; the ragged 6 are left out
    for image, index in zip(seen, order, strict=False):
        assert np.array_equal(image[0].numpy(), blob(int(index)))


def damage(folder: Path, index: int) -> None:
    """Flip a bit of a training image on the disk."""
    shard = read_manifest(folder).splits["train"][0]
    with (folder / shard.name).open("r+b") as file:
        file.seek(shard.data_offset + index * SIZE_PX**2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("loader", ["host", "device"])
def test_a_damaged_image_ends_the_epoch_before_it_is_seen(tmp_path: Path, loader: str) -> None:
    split = load_split(make_shards(tmp_path), "train")
    seen: list[torch.Tensor] = []
    damage(tmp_path, 17)
    plan = BatchPlan(len(split), 8, 5)
    step = next(step for step, indices in enumerate(plan.indices(0, 8)) if 17 in indices)
    with pytest.raises(DataError, match="image 'train/17' is damaged"):
        seen.extend(batches(split, plan, 0, 8, CPU, loader))
    assert len(seen) == (step if loader == "host" else 0)


def test_an_image_is_checked_once_by_a_process_and_by_all_that_is_kept_on_a_device(tmp_path: Path) -> None:
    split, plan = load_split(make_shards(tmp_path), "train"), BatchPlan(COUNTS["train"], 8, 5)
    assert len(list(batches(split, plan, 0, 16, CPU, "host"))) == 16
    damage(tmp_path, 17)
    assert split.take(np.array([17]))[0, 0, 0, 0] == blob(17)[0, 0] ^ 1
    with pytest.raises(DataError, match="image 'train/17' is damaged"):
        batches(split, plan, 0, 8, CPU, "device")
    with pytest.raises(DataError, match="image 'train/17' is damaged"):
        load_split(tmp_path, "train").take(np.arange(COUNTS["train"]))


def test_images_go_to_a_device_in_parts(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_loader, "UPLOAD_IMAGES", 16)
    split = load_split(shards, "train")
    plan = BatchPlan(len(split), 8, 5)
    for batch, indices in zip(batches(split, plan, 0, 8, CPU, "device"), plan.indices(0, 8), strict=True):
        assert torch.equal(batch, split.take(indices))


def test_order_depends_on_seed_and_epoch_and_repeats() -> None:
    assert torch.equal(epoch_order(1, 2, 100), epoch_order(1, 2, 100))
    assert not torch.equal(epoch_order(1, 2, 100), epoch_order(1, 3, 100))
    assert not torch.equal(epoch_order(1, 2, 100), epoch_order(2, 2, 100))
    assert sorted(epoch_order(1, 2, 100).tolist()) == list(range(100))


def test_resuming_in_the_middle_gives_the_remaining_batches() -> None:
    plan = BatchPlan(num_images=30, batch_size=4, seed=3)
    whole = [indices.tolist() for indices in plan.indices(0, 21)]
    assert [indices.tolist() for indices in plan.indices(10, 21)] == whole[10:]


@pytest.mark.parametrize(("batch", "world"), [(32, 1), (32, 4), (7, 3), (5, 5)])
def test_rank_slices_cover_the_batch_once(batch: int, world: int) -> None:
    covered = [i for rank in range(world) for i in range(batch)[rank_slice(batch, rank, world)]]
    assert covered == list(range(batch))


def test_noise_belongs_to_seed_and_step() -> None:
    first = step_noise(0, 5, (8, 4), CPU)
    assert torch.equal(first, step_noise(0, 5, (8, 4), CPU))
    assert not torch.equal(first, step_noise(0, 6, (8, 4), CPU))
    assert not torch.equal(first, step_noise(1, 5, (8, 4), CPU))
    many = step_noise(0, 0, (1000, 100), CPU)
    assert abs(many.mean()) < 0.02
    assert many.std().item() == pytest.approx(1, abs=0.02)


def test_abandoned_loader_ends_its_thread(shards: Path) -> None:
    import threading

    split = load_split(shards, "train")
    loader = batches(split, BatchPlan(len(split), 8, 0), 0, 1000, CPU, "host")
    next(iter(loader))
    loader.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_greys_become_unit_range() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    torch.testing.assert_close(to_unit(images).flatten(), torch.tensor([0, 0.2, 1]))
    assert to_unit(images, torch.float64).dtype == torch.float64


def test_loader_is_chosen_by_device_unless_named() -> None:
    assert choose_loader("auto", 10**12, CPU) == "host"
    assert choose_loader("device", 10**12, CPU) == "device"

"""Batches: every image once an epoch, the same order for everyone, whichever way they are stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import COUNTS, SIZE_PX, blob, make_shards

from data_prep.errors import DataError
from data_prep.manifest import read_manifest
from vae.training import data_loader
from vae.training.data_loader import (
    BatchPlan,
    batches,
    choose_loader,
    epoch_order,
    load_split,
    rank_slice,
    step_noise,
    to_unit,
)

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

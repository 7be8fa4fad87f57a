"""Packed images to training batches, from the host or the device, in an order of nothing but the seed.

The order of samples is a pure function of (seed, epoch, position). A global batch is a slice of it and each
rank takes its part of the slice, so the number of GPUs and interruptions change nothing, and a resume costs
one permutation.
"""

import logging
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.errors import DataError
from data_prep.manifest import read_manifest
from data_prep.shard_reader import open_shard, read_groups
from vae.training.gather import Gather, gather_from

log = logging.getLogger(__name__)

# Threads of the host tier that fill batches: where the training waits for data, one core cannot copy faster.
READERS = 2
# Its buffers: two being filled, two waiting, one being copied or used.
RING_BUFFERS = 5
# The device tier takes its images through host memory in parts of so many.
UPLOAD_IMAGES = 256
# The device tier takes at most this share of the free GPU memory; the rest is for the model.
DEVICE_MEMORY_SHARE = 0.25
# Separate random streams of one seed, so that order and noise never share numbers.
ORDER_STREAM, NOISE_STREAM = 0, 1


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """All images of one split, memory-mapped over its shards.

    An image is checked against its CRC when this process reads it for the first time, in the copy that is
    handed out; after that it is only copied. So whatever was damaged before a job, or its next attempt, came
    to it is found. What changes later is found by the next process only: a file overwritten in place, or a
    page that was dropped from memory and comes back wrong from the disk in a later epoch.
    """

    fingerprint: str
    """Of the whole data set."""
    image_size_px: int
    keys: list[str]
    """Names of the source images."""
    labels: np.ndarray
    """uint8 [num_images] class indices."""
    crc32: np.ndarray
    images: Gather
    """What copies images together from the shards' maps."""
    checked: np.ndarray
    """Which images this process found undamaged. No lock is needed: at worst two threads check the same."""

    def __len__(self) -> int:
        return len(self.labels)

    def read_into(self, buffer: np.ndarray, indices: np.ndarray) -> None:
        """Copy the images at `indices` into `buffer`, uint8 [n, H, W]; DataError where one is damaged."""
        self.images.copy_into(buffer, indices)
        self._check(buffer, indices)

    def _check(self, buffer: np.ndarray, indices: np.ndarray) -> None:
        """Raise DataError if an image that is new to this process is not what was packed."""
        for row in np.flatnonzero(~self.checked[indices]):
            index = indices[row]
            if zlib.crc32(buffer[row]) != self.crc32[index]:
                raise DataError(
                    f"image {self.keys[index]!r} is damaged: its checksum is not the one it was packed with",
                    "find the shard with `python jobs/pack.py SHARDS --verify`, delete it and pack again",
                )
        self.checked[indices] = True

    def take(self, indices: np.ndarray | Tensor) -> Tensor:
        """The images at `indices` as a fresh uint8 tensor [len(indices), 1, H, W]."""
        indices = np.asarray(indices)
        buffer = np.empty((len(indices), self.image_size_px, self.image_size_px), np.uint8)
        self.read_into(buffer, indices)
        return torch.from_numpy(buffer).unsqueeze(1)


def load_split(data: Path, split: str) -> ImageSplit:
    """Open one split (`train`, `val` or `test`) of a packed data folder; DataError if it has none."""
    manifest = read_manifest(data)
    shards = [open_shard(data, shard) for shard in manifest.splits.get(split, ())]
    if not shards:
        splits = ", ".join(manifest.splits)
        raise DataError(f"{data} has no {split!r} split; it has: {splits}", "pack it again with that split")
    return ImageSplit(
        manifest.fingerprint,
        manifest.image_size_px,
        keys=list(chain.from_iterable(shard.keys for shard in shards)),
        labels=np.concatenate([shard.labels for shard in shards]),
        crc32=np.concatenate([shard.crc32 for shard in shards]),
        images=gather_from([shard.images for shard in shards if isinstance(shard.images, np.memmap)]),
        checked=np.zeros(sum(len(shard.labels) for shard in shards), bool),
    )


def load_patients(data: Path, split: str) -> tuple[np.ndarray, str]:
    """A number for each image's patient, int64 [num_images], one of its own where nobody knows; and what the
    numbers count: patients, images, or both."""
    shards = read_manifest(data).splits[split]
    names = list(chain.from_iterable(read_groups(data, shard) for shard in shards))
    numbers: dict[str | int, int] = {}
    patients = [numbers.setdefault(name or own, len(numbers)) for own, name in enumerate(names)]
    unit = "patients" if all(names) else "patients and images of unknown ones" if any(names) else "images"
    return np.array(patients, np.int64), unit


def to_unit(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Grey values uint8 0..255 as floats in [0, 1], same shape, in the layout convolutions like best."""
    return images.to(dtype, memory_format=torch.channels_last).div_(255)


def epoch_order(seed: int, epoch: int, num_images: int) -> Tensor:
    """The permutation of `num_images` images in one epoch, int64 [num_images]."""
    generator = torch.Generator().manual_seed(mix(seed, ORDER_STREAM, epoch))
    return torch.randperm(num_images, generator=generator)


def mix(*numbers: int) -> int:
    """One well-spread 63-bit seed from several small numbers (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def step_noise(seed: int, step: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal noise for one global batch, fp32 `shape`: each rank uses the slice of its images."""
    generator = torch.Generator(device).manual_seed(mix(seed, NOISE_STREAM, step))
    return torch.randn(shape, generator=generator, device=device)


def rank_slice(batch_size: int, rank: int, world_size: int) -> slice:
    """The part of a global batch that belongs to `rank`; parts differ by at most one image."""
    return slice(batch_size * rank // world_size, batch_size * (rank + 1) // world_size)


@dataclass(frozen=True)
class BatchPlan:
    """Which images make up which step, for one rank."""

    num_images: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in one epoch; the ragged rest of the permutation is left out."""
        return self.num_images // self.batch_size

    @property
    def own_images(self) -> slice:
        """This rank's part of a global batch."""
        return rank_slice(self.batch_size, self.rank, self.world_size)

    def indices(self, first_step: int, last_step: int) -> Iterator[Tensor]:
        """This rank's image indices for each step in [first_step, last_step)."""
        part = self.own_images
        epoch, order = -1, torch.empty(0)
        for step in range(first_step, last_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = epoch_order(self.seed, epoch, self.num_images)
            start = step % self.steps_per_epoch * self.batch_size
            yield order[start + part.start : start + part.stop]


def choose_loader(loader: str, num_bytes: int, device: torch.device) -> str:
    """`device` where the images fit beside the model on a GPU, else `host`, unless `loader` says so."""
    if loader != "auto":
        return loader
    if device.type != "cuda":
        return "host"
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return "device" if num_bytes <= DEVICE_MEMORY_SHARE * free_bytes else "host"


def batches(
    split: ImageSplit, plan: BatchPlan, first: int, last: int, device: torch.device, loader: str = "auto"
) -> Iterator[Tensor]:
    """This rank's batches of steps [first, last), uint8 [b, 1, H, W] on `device`, valid until the next."""
    steps, part = plan.indices(first, last), plan.own_images
    tier = choose_loader(loader, len(split) * split.image_size_px**2, device)
    if plan.rank == 0:
        log.info("%d images, %s tier; %s", len(split), tier, split.images.how)
    if tier == "device":
        images = _upload(split, device)  # a batch is a gather there
        return (images.index_select(0, indices.to(device, non_blocking=True)) for indices in steps)
    return _host_batches(split, steps, part.stop - part.start, device)


def _upload(split: ImageSplit, device: torch.device) -> Tensor:
    """All images, uint8 [n, 1, H, W] on the device, every one checked: nothing reads them again."""
    split.checked.fill(False)
    shape = (len(split), 1, split.image_size_px, split.image_size_px)
    images = torch.empty(shape, dtype=torch.uint8, device=device)
    for start in range(0, len(split), UPLOAD_IMAGES):
        rows = np.arange(start, min(start + UPLOAD_IMAGES, len(split)))
        images[start : start + len(rows)] = split.take(rows)
    return images


class _Slot:
    """One reusable host buffer, and the event after which the GPU has read it."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.tensor = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.copied = torch.cuda.Event() if device.type == "cuda" else None

    def fill(self, split: ImageSplit, indices: Tensor) -> "_Slot":
        """Itself with these images."""
        if self.copied is not None:
            self.copied.synchronize()  # in a helper thread: the training never waits here
        split.read_into(self.tensor.numpy(), indices.numpy())
        return self

    def to_device(self, device: torch.device) -> Tensor:
        batch = self.tensor.unsqueeze(1).to(device, non_blocking=True)  # on a CPU the buffer itself
        if self.copied is not None:
            self.copied.record()
        return batch


def _host_batches(
    split: ImageSplit, steps: Iterator[Tensor], images_per_step: int, device: torch.device
) -> Iterator[Tensor]:
    """Batches that threads gather from the memory map into a ring of pinned buffers, ahead of the training.

    Threads, not worker processes: handing a batch to another process costs more than gathering it.
    """
    shape = (images_per_step, split.image_size_px, split.image_size_px)
    slots = [_Slot(shape, device) for _ in range(RING_BUFFERS)]
    with ThreadPoolExecutor(READERS, "read-ahead") as readers:
        # indices are drawn here, so that every step gets its own whichever thread is faster
        filled = deque(
            readers.submit(slot.fill, split, step) for slot, step in zip(slots, steps, strict=False)
        )
        while filled:
            slot = filled.popleft().result()
            yield slot.to_device(device)
            if (indices := next(steps, None)) is not None:
                filled.append(readers.submit(slot.fill, split, indices))

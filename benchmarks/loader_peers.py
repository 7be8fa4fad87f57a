"""The loaders that others would use for raw uint8 images, each set up as its documentation says."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import numpy.typing as npt
import streaming
import torch
import webdataset
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

datasets.disable_progress_bars()

Images = npt.NDArray[np.uint8]
Epoch = Callable[[], Iterator[torch.Tensor]]
EpochWith = Callable[[int, int], Epoch]
"""An epoch in batches of so many images, with so many workers."""
Peer = Callable[[Images, Path], EpochWith]
"""Writes the images, which lie in `images.npy` of the folder, there in its own form."""


def loading(dataset: Any, workers: int, **settings: Any) -> DataLoader[Any]:
    """A DataLoader whose workers, if any, stay for the next epoch."""
    return DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, **settings)


class H5Images(Dataset[torch.Tensor]):
    """One HDF5 data set, opened where it is read."""

    def __init__(self, path: Path, num_images: int) -> None:
        self.path, self.num_images = path, num_images
        self.opened: h5py.Dataset | None = None

    def __len__(self) -> int:
        return self.num_images

    @property
    def images(self) -> h5py.Dataset:
        """The data set of this process."""
        if self.opened is None:
            self.opened = h5py.File(self.path)["images"]
        return self.opened

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.images[index])


class H5Batches(H5Images):
    """The same, a batch with one call: h5py wants increasing indices."""

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        """The images of a batch."""
        order = np.argsort(indices)
        read = self.images[np.asarray(indices)[order]]
        batch = np.empty_like(read)
        batch[order] = read
        return torch.from_numpy(batch)


def h5py_items(images: Images, folder: Path) -> EpochWith:
    """Contiguous, an image with each read."""
    path = folder / "items.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images)
    return lambda batch, workers: (
        loading(H5Images(path, len(images)), workers, batch_size=batch, shuffle=True).__iter__
    )


def h5py_batches(images: Images, folder: Path) -> EpochWith:
    """Contiguous, a batch with each read."""
    path = folder / "batches.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images)
    return lambda batch, workers: (
        loading(
            H5Batches(path, len(images)), workers, batch_size=batch, shuffle=True, collate_fn=same
        ).__iter__
    )


def tars(images: Images, folder: Path) -> EpochWith:
    """Tar files of raw bytes (faster than .npy, which its decoder would parse), batched in the pipeline."""
    places = [str(folder / f"{number:06d}.tar") for number in range(-(-len(images) // 512))]
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=512, verbose=0) as writer:
        for number, image in enumerate(images):
            writer.write({"__key__": f"{number:07d}", "bin": image.tobytes()})
    side = images.shape[1]

    def unpack(content: bytes) -> Images:
        return np.frombuffer(content, np.uint8).reshape(side, side)

    def epoch_with(batch: int, workers: int) -> Epoch:
        samples = webdataset.WebDataset(places, shardshuffle=100).shuffle(1000).to_tuple("bin")
        batched = samples.map_tuple(unpack).batched(batch, collation_fn=stack_first)
        return loading(batched, workers, batch_size=None).__iter__

    return epoch_with


def mds(images: Images, folder: Path) -> EpochWith:
    """Mosaic's shards of raw bytes: faster than its `ndarray` columns."""
    place, side = folder / "mds", images.shape[1]
    with streaming.MDSWriter(out=str(place), columns={"image": "bytes"}) as writer:
        for image in images:
            writer.write({"image": image.tobytes()})

    def collate(rows: list[dict[str, bytes]]) -> torch.Tensor:
        return stacked([np.frombuffer(row["image"], np.uint8).reshape(side, side) for row in rows])

    def epoch_with(batch: int, workers: int) -> Epoch:
        streaming.base.util.clean_stale_shared_memory()
        samples = streaming.StreamingDataset(local=str(place), shuffle=True, batch_size=batch)
        return loading(samples, workers, batch_size=batch, collate_fn=collate).__iter__

    return epoch_with


def arrow(images: Images, folder: Path) -> EpochWith:
    """Arrow's bytes, a batch with each read, without copies before the last: its array types are slower."""
    place, side = folder / "arrow", images.shape[1]
    features = datasets.Features(image=datasets.Value("binary"))
    settings = {"gen_kwargs": {"path": str(folder / "images.npy")}, "cache_dir": str(folder)}
    datasets.Dataset.from_generator(raw_rows, features=features, **settings).save_to_disk(place)

    def collate(table: Any) -> torch.Tensor:
        buffers = [value.as_buffer() for value in table.column("image")]
        return stacked([np.frombuffer(buffer, np.uint8).reshape(side, side) for buffer in buffers])

    def epoch_with(batch: int, workers: int) -> Epoch:
        table = datasets.load_from_disk(place).with_format("arrow")
        sampler = BatchSampler(RandomSampler(table), batch, drop_last=True)
        return loading(table, workers, sampler=sampler, batch_size=None, collate_fn=collate).__iter__

    return epoch_with


def raw_rows(path: str) -> Iterator[dict[str, bytes]]:
    for image in np.load(path, mmap_mode="r"):
        yield {"image": image.tobytes()}


def stack_first(rows: list[tuple[Images]]) -> torch.Tensor:
    return stacked([row[0] for row in rows])


def stacked(rows: list[Images]) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows))


def same(batch: torch.Tensor) -> torch.Tensor:
    return batch


PEERS: dict[str, Peer] = {
    "webdataset": tars,
    "mosaicml-streaming": mds,
    "HF datasets": arrow,
    "h5py, an image a read": h5py_items,
    "h5py, a batch a read": h5py_batches,
}

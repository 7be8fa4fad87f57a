"""FFCV's side of loader.py, in an interpreter that can import it: an answer for every line on stdin.

VENV/bin/python benchmarks/loader_ffcv.py IMAGES.npy FILE.beton BATCH THREADS EPOCHS
"""

import sys
from pathlib import Path

import numpy as np
from ffcv.fields import NDArrayField
from ffcv.fields.decoders import NDArrayDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter


class Rows:
    """Images as FFCV's writer wants them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        return (self.images[index],)


def main() -> None:
    """Write the images once; then read them EPOCHS times in random order and say how many, for every line."""
    images, path = np.load(sys.argv[1], mmap_mode="r"), Path(sys.argv[2])
    batch, threads, epochs = map(int, sys.argv[3:])
    if not path.exists():
        fields = {"image": NDArrayField(np.dtype(np.uint8), images.shape[1:])}
        DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Rows(images))
    loader = Loader(
        str(path),
        batch_size=batch,
        num_workers=threads,
        os_cache=True,  # what its guide recommends where the data fit into memory
        order=OrderOption.RANDOM,
        pipelines={"image": [NDArrayDecoder(), ToTensor()]},
        indices=np.tile(np.arange(len(images)), epochs),
        drop_last=True,
    )
    seen = [read.numpy().mean() for (read,) in loader]
    assert abs(np.mean(seen) / images.mean() - 1) < 0.01
    for _ in sys.stdin:
        print(sum(len(read) for (read,) in loader), flush=True)


if __name__ == "__main__":
    main()
